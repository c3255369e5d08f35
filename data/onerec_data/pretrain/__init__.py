"""The pretrain tasks, a file each."""
