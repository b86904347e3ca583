"""The backbone: plain torch, transformers and peft. Start at `loading.load_backbone`."""
