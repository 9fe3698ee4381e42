"""What ``esper-ray`` can be asked to do: a class per command, its fields the flags."""
