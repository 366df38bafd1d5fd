"""Running a bundle: the orchestrator, the engines, the operations of the host."""
