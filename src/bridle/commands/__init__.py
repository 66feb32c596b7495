"""The commands: arguments, tables and progress; the work itself is done by the library."""
