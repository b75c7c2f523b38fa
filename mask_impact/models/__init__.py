"""From a name to a model that is ready, with its tokenizer or processor.

In: a hub id, a folder, a .gguf file, `demo`. Out: a LoadedModel (or a Reader: all but the weights), and where the modules of its
decoder layers are. safetensors and GGUF only, never remote code. It must not know prompts, or what is measured.
"""
