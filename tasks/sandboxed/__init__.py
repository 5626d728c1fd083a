"""The inside of the sandbox: what runs in the processes that `tasks.sandbox` starts; standard library only."""
