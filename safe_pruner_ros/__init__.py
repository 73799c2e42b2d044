# The generated half of this package (safe_pruner_ros.msg) lies in install/, this half in the source
# tree. Joining every safe_pruner_ros folder on sys.path makes the two one package in development;
# an installed package is one folder and works without this file (either __init__.py may win there).
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
