"""What all trainers share: replicas, optimizer steps, schedules, checkpoints, metrics, progress, interrupts."""
