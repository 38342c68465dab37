"""What an enemy or an accident might do, drawn at random: ``make fuzz MINUTES=5`` or ``python -m tests.fuzz --help``.

A *subject* is a part of the package that is attacked. All of a round is drawn from one seed, in a process of its own
that may crash or hang: ``python -m tests.fuzz --subject cache --seed 17 --rounds 1`` does it again.
"""
