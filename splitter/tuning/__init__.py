"""Settings chosen by measurement on real audio: what stays in float32."""
