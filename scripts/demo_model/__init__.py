"""How the bundled demo models are made: corpus, tokenizer, tasks, training, export and measurement."""
