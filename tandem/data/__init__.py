"""From a corpus to token batches: `corpus` → `tokenizer` → `packing` → `iterator`."""
