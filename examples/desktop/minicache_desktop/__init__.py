"""A desktop app that chats with a model whose KV cache minicache-cpp keeps small."""
