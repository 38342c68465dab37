"""What a kernel would take on a GPU, from its code alone: nothing runs on one, so all times are estimates.

``ptx.py`` reads what the compiler made, ``warp.py`` walks through it with all lanes of some blocks, ``memory.py`` says
what their addresses cost, ``sass.py`` counts the machine's own instructions, ``facts.py`` puts these together for each
device function, ``bounds.py`` makes times of them.
"""
