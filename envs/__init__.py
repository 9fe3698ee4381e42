"""The world: hosts that grow while they train, behind a Gymnasium interface.

Importing this package registers ``esper/Morphogenesis-v0`` with Gymnasium, as a single and as a vector environment.
"""

import gymnasium

ENV_ID = "esper/Morphogenesis-v0"

gymnasium.register(
    id=ENV_ID,
    entry_point="envs.morphogenesis:MorphogenesisEnv",
    vector_entry_point="envs.morphogenesis:MorphogenesisVectorEnv",
)
