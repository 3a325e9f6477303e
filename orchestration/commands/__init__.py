"""The subcommands of `fsg`, a file each, and what a launch is made of."""
