"""What hosts spend their time in, in C, and the functions that differentiate through it.

``kernels.c`` is compiled by ``library``, offered to torch by ``operators`` and to autograd by ``differentiable``; who
calls it has the same in torch's own operators for where it is not at hand (``envs.batched.layers``,
``envs.population.blending``, ``envs.population.optimizer``).
"""
