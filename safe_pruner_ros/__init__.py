# The generated half of this package (safe_pruner_ros.msg) lies in install/, this half in the
# source tree. Joining every safe_pruner_ros folder on sys.path makes the two one package in
# development. An installed package is one folder and works without this file: there, either
# __init__.py of the two halves may win.
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
