"""What outlives a process: run directories, their copies elsewhere, exports."""
