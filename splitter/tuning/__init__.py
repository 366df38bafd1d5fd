"""Settings chosen by measurement on real audio: each search gives a plan, which a build obeys."""
