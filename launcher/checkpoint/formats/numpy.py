"""numpy's `*.npz` (a zip archive of arrays, in place, its directory last), where nothing tells more."""

from __future__ import annotations

from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready
from launcher.checkpoint.tree import Tree


class Numpy:
    """A folder with `*.npz`, or one."""

    name = "numpy"
    completes: tuple[str, ...] = ()

    def recognises(self, tree: Tree) -> bool:
        return any(path.endswith(".npz") for path in tree.files)

    def judge(self, tree: Tree, context: Context) -> Judgement:
        from launcher.checkpoint.formats import files

        return judged(self.name, files.mistakes(tree), context, proven=False)

    def facts(self, tree: Tree) -> Facts:
        return Facts(library="numpy")

    def ready(self, tree: Tree) -> Ready:
        reason = "what an array is for is known to the script that wrote it"
        return Ready(resume_reason=reason, inference_reason=reason)

    def claims(self, tree: Tree) -> frozenset[str]:
        return frozenset()
