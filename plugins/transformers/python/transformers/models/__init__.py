"""Models are imported one by one."""
