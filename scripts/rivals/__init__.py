"""KV-cache methods of other authors beside ours, simulated on the same tokens in float32."""
