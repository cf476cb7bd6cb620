"""GGUF: a file of tensors and metadata, by the gguf package's own writer."""

import gguf
import numpy
import tiny

OUT = tiny.output()

if tiny.rank() == 0:
    (OUT / "gguf").mkdir(parents=True)
    writer = gguf.GGUFWriter(OUT / "gguf" / "tiny-f32.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tensors = {
        "token_embd.weight": numpy.arange(320, dtype=numpy.float32).reshape(10, 32),
        "output_norm.weight": numpy.ones(32, dtype=numpy.float32),
    }
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tiny.remember("gguf", tensors=tensors)
