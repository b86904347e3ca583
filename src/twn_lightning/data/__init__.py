"""From sources to batches: pairs, the CoT filters, the stateful sampler, the collator and the data module."""
