"""The provider `demo`: a pod process with a simulated Ollama and ComfyUI; tests use the servers alone."""
