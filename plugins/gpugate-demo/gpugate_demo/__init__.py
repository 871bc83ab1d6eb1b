"""Simulated Ollama and ComfyUI, for tests and the demo; knows nothing of the gateway in front of them."""
