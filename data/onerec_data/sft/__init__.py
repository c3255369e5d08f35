"""The sft tasks, a file each."""
