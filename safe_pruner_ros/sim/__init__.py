"""Simulated two-armed robot. Picks an off-screen GL backend, because MuJoCo reads it at import.

Only unset variables are filled in, and only where there is no display to open a window on.
"""

import ctypes.util
import os

if not os.environ.get('DISPLAY'):
    os.environ.setdefault('MUJOCO_GL', 'osmesa' if ctypes.util.find_library('OSMesa') else 'egl')
os.environ.setdefault('LP_NUM_THREADS', '1')  # Mesa's threads fight with torch's for the cores
