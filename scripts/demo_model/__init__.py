"""How the bundled demo model is made: corpus, tokenizer, tasks, training, export and measurement."""
