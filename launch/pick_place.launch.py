"""The policy node on a robot, or on the simulated one with sim:=true, brought to active.

ros2 launch safe_pruner_ros pick_place.launch.py sim:=true
ros2 launch safe_pruner_ros pick_place.launch.py --show-args

A robot or a policy is an argument, not another launch file. What is typed wins over params_file;
what is left empty keeps the value of params_file, or else of the YAML files. The node is
configured and activated once; if one of the two is refused, everything is shut down and the node's
log says why. Later transitions are the operator's: a configure then ends in inactive, and a
refusal ends nothing.
"""

import os
from tempfile import NamedTemporaryFile
from typing import Any

import yaml
from ament_index_python.packages import get_package_share_directory
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    UnregisterEventHandler,
)
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import Shutdown, matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription

PACKAGE = 'safe_pruner_ros'
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')

# Launch argument -> node parameter and how to read it. None has a default of its own here: what
# was typed must be known from what was not.
OVERRIDES = {
    'robot': ('robot_file', str),
    'policy': ('policy_file', str),
    'instruction': ('instruction', str),
    'method': ('pruner.method', str),
    'retention_ratio': ('pruner.retention_ratio', float),
    'checkpoint': ('policy.checkpoint', str),
    'device': ('policy.device', str),
    'dry_run': ('robot.dry_run', 'boolean'),
    'use_sim_time': ('use_sim_time', 'boolean'),
    'activation_timeout_s': ('activation_timeout_s', float),
}
# Where neither an argument nor params_file says otherwise.
DEFAULTS = {'policy_file': 'embedded', 'use_sim_time': False, 'activation_timeout_s': 30.0}


def as_boolean(text: str, name: str) -> bool:
    values = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
    if text.lower() not in values:
        raise RuntimeError(f'{name}:={text} is neither true nor false')
    return values[text.lower()]


def overrides(context: LaunchContext) -> dict[str, Any]:
    """Node parameters for the arguments that were given a value."""
    parameters: dict[str, Any] = {}
    for argument, (parameter, kind) in OVERRIDES.items():
        text = LaunchConfiguration(argument).perform(context)
        if not text:
            continue
        if kind == 'boolean':
            parameters[parameter] = as_boolean(text, argument)
        elif kind is float:
            try:
                parameters[parameter] = float(text)
            except ValueError:
                raise RuntimeError(f'{argument}:={text} is not a number') from None
        else:
            parameters[parameter] = text
    return parameters


def in_order(
    defaults: dict[str, Any], params_file: str, typed: dict[str, Any]
) -> list[dict[str, Any] | str]:
    """Parameters of the node, the later one wins: defaults, params_file, what was typed.

    The order alone would not do. Of two names that fit, `/**` and `/safe_pruner`, rcl takes the
    value under the name that it met last, whichever file says it there; and `robot: {dry_run: ..}`
    does not replace `robot.dry_run: ..` but stands after it. So what was typed is said once more,
    level by level, under every name in params_file.
    """
    if not params_file or not typed:
        return [defaults | typed, *([params_file] if params_file else [])]
    try:
        with open(params_file, encoding='utf-8') as file:
            names = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RuntimeError(
            f'params_file:={params_file} cannot be read ({error}); give the path of a ROS '
            f'parameter file'
        ) from None
    again = under_every_name(names, typed)
    if not again:
        raise RuntimeError(
            f'params_file:={params_file} sets no parameters: no node with ros__parameters in it; '
            f'docs/settings.md shows how it is written'
        )
    with NamedTemporaryFile('w', prefix='safe_pruner_typed_', suffix='.yaml', delete=False) as out:
        yaml.safe_dump(again, out)
    return [defaults | typed, params_file, out.name]


def under_every_name(names: object, values: dict[str, Any]) -> dict[str, Any]:
    """The names of a parameter file, and below each ``values`` in place of its own."""
    if not isinstance(names, dict):
        return {}
    found = {
        name: by_level(values) if name == 'ros__parameters' else under_every_name(below, values)
        for name, below in names.items()
    }
    return {name: below for name, below in found.items() if below}


def by_level(values: dict[str, Any]) -> dict[str, Any]:
    """{'robot.dry_run': True} -> {'robot': {'dry_run': True}}"""
    levels: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split('.')
        level = levels
        for part in above:
            level = level.setdefault(part, {})
        level[last] = value
    return levels


def bring_up(node: LifecycleNode) -> list[Action]:
    """Configure when the process runs, activate when configured, shut down when refused: once.

    An operator who deactivates, cleans up and configures to look first must not get moving arms,
    so every handler of a transition is gone once the node was active.
    """

    def change(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(node), transition_id=transition
            )
        )

    def refused(start: str, text: str) -> OnStateTransition:
        goal = 'unconfigured' if start == 'configuring' else 'inactive'
        return OnStateTransition(
            target_lifecycle_node=node,
            start_state=start,
            goal_state=goal,
            entities=[
                LogInfo(msg=f'{text}; the reason is in the log of safe_pruner above'),
                EmitEvent(event=Shutdown(reason=text)),
            ],
        )

    refusals = [
        refused('configuring', 'configure was refused'),
        refused('activating', 'activate was refused'),
    ]
    handlers = [
        OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)]),
        OnStateTransition(
            target_lifecycle_node=node,
            start_state='configuring',
            goal_state='inactive',
            entities=[change(Transition.TRANSITION_ACTIVATE)],
            handle_once=True,
        ),
        *refusals,
        OnStateTransition(
            target_lifecycle_node=node,
            start_state='activating',
            goal_state='active',
            entities=[UnregisterEventHandler(handler) for handler in refusals],
            handle_once=True,
        ),
        OnProcessExit(
            target_action=node,
            on_exit=[EmitEvent(event=Shutdown(reason='the policy node ended'))],
        ),
    ]
    return [RegisterEventHandler(handler) for handler in handlers]


def start(context: LaunchContext) -> list[Action]:
    share = get_package_share_directory(PACKAGE)
    is_simulated = as_boolean(LaunchConfiguration('sim').perform(context), 'sim')
    with_rviz = as_boolean(LaunchConfiguration('rviz').perform(context), 'rviz')
    typed = overrides(context)
    robot = typed.get('robot_file', 'sim' if is_simulated else 'astribot_s1')
    if is_simulated:  # the simulator is this robot, and the clock
        typed |= {'robot_file': robot, 'use_sim_time': True}
    params_file = LaunchConfiguration('params_file').perform(context)
    parameters = in_order(DEFAULTS | {'robot_file': robot}, params_file, typed)
    log_arguments = ['--ros-args', '--log-level', LaunchConfiguration('log_level')]

    profile = os.path.join(share, 'config', 'fastdds_profile.xml')
    actions: list[Action] = [
        SetEnvironmentVariable(name, profile)
        for name in PROFILE_VARIABLES
        if name not in os.environ
    ]
    if 'OMP_NUM_THREADS' not in os.environ:
        # As `safe-pruner demo` does: rendering, DDS and torch on all cores slow each other down.
        threads = max(1, (os.cpu_count() or 1) // 4)
        actions.append(SetEnvironmentVariable('OMP_NUM_THREADS', str(threads)))
    node = LifecycleNode(
        package=PACKAGE,
        executable='safe_pruner_node',
        name='safe_pruner',
        namespace='',
        output='screen',
        parameters=parameters,
        arguments=log_arguments,
    )
    if is_simulated:
        actions.append(
            Node(
                package=PACKAGE,
                executable='sim_node',
                name='sim',
                output='screen',
                parameters=[
                    {
                        'robot_file': robot,
                        'task': LaunchConfiguration('task').perform(context),
                        'seed': int(LaunchConfiguration('seed').perform(context)),
                        'target': int(LaunchConfiguration('target').perform(context)),
                    }
                ],
                arguments=log_arguments,
            )
        )
    if with_rviz:
        if is_simulated:
            with open(robot_description(share), encoding='utf-8') as file:
                text = file.read()
            actions.append(
                Node(
                    package='robot_state_publisher',
                    executable='robot_state_publisher',
                    parameters=[{'robot_description': text, 'use_sim_time': True}],
                )
            )
        actions.append(
            Node(
                package='rviz2',
                executable='rviz2',
                arguments=['-d', os.path.join(share, 'config', 'pick_place.rviz')],
                parameters=[{'use_sim_time': typed.get('use_sim_time', False)}],
            )
        )
    # Handlers first: the node may be up before the next action is visited.
    return [*actions, *bring_up(node), node]


def robot_description(share: str) -> str:
    """URDF of the simulated robot; real robots bring their own robot_state_publisher."""
    return os.path.join(share, 'config', 'robots', 'sim.urdf')


def argument(name: str, default: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            argument('sim', 'false', 'true: start the simulated robot and use its clock'),
            argument(
                'robot',
                '',
                'name in config/robots or path of a YAML file; empty: sim, or astribot_s1',
            ),
            argument(
                'policy',
                '',
                'name in config/policies or path of a YAML file; empty: embedded',
            ),
            argument(
                'checkpoint', '', 'weights: a file, or the folder of a big policy; empty: YAML'
            ),
            argument('device', '', 'torch device: cpu, cuda, cuda:0 or auto; empty: YAML'),
            argument(
                'method',
                '',
                'pruning method: core/catalog.py, e.g. unpruned, safe_pruner; empty: YAML',
            ),
            argument('retention_ratio', '', 'share of visual tokens kept, in (0, 1]; empty: YAML'),
            argument('instruction', '', 'what to do; empty: wait for the instruction topic'),
            argument(
                'dry_run',
                '',
                'true: commands go to ~/preview; empty: as the robot file says '
                '(true for real robots, false for the simulator)',
            ),
            argument('use_sim_time', '', 'true: follow /clock, as sim:=true does anyway'),
            argument(
                'task',
                'pick_place',
                'of the simulated robot: pick_place, throw_basketball or pack_doll',
            ),
            argument('seed', '0', 'scene of the simulated robot'),
            argument('target', '-1', 'object to name in that scene; -1: as drawn'),
            argument('rviz', 'false', 'true: open RViz with the attention overlays'),
            argument('params_file', '', 'ROS parameter file for the node; what is typed wins'),
            argument(
                'activation_timeout_s', '', 'how long to wait for fresh data, seconds; empty: 30'
            ),
            argument('log_level', 'info', 'debug, info, warn or error'),
            OpaqueFunction(function=start),
        ]
    )
