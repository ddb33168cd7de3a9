"""One of the two worlds: a robot in a maze, the environment `rl_notes/Maze-v0`.

`rules` holds the tables, `environment` what gymnasium asks for, `drawing` the pictures.
"""

from rl_notes.maze.environment import MazeEnv, MazeVectorEnv

__all__ = ["MazeEnv", "MazeVectorEnv"]
