"""RL Notes: reinforcement learning, from a robot in a maze to a language model.

Importing this package registers the environment `rl_notes/Maze-v0` with gymnasium
and loads nothing else. Everything is imported from its own module, for example
`from rl_notes.updates import reinforce_update`.

A name in parentheses in a docstring, such as (clip), is that of an equation. The same
name stands beside the equation in the book, as its tag, and in the book's page of
equations, which names the function and the test behind each.
"""

import gymnasium

__version__ = "0.1.0"

if "rl_notes/Maze-v0" not in gymnasium.registry:
    gymnasium.register(
        id="rl_notes/Maze-v0",
        entry_point="rl_notes.maze:MazeEnv",
        vector_entry_point="rl_notes.maze:MazeVectorEnv",
        max_episode_steps=500,
    )
