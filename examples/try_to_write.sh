#!/bin/sh
# Tries to change the input checkpoint in three ways; succeeds only if none of them works.
model=$(dirname "$(find -L "$FLEXAI_INPUT_CHECKPOINT_DIR" -name config.json | head -n 1)")
echo "trying to write in $model as $(id -un)"
touch "$model/new" && exit 1
rm -f "$model/config.json" && exit 1
(echo broken >"$model/config.json") && exit 1
echo "the input is read-only in fact"
