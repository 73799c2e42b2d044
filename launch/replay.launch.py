"""A recording played into the live policy node, which commands nothing but previews.

ros2 launch safe_pruner_ros replay.launch.py bag:=/data/run7 robot:=/data/our_robot.yaml
ros2 launch safe_pruner_ros replay.launch.py --show-args

A dry run, whatever params_file says; dry_run:=false has to be typed. Robot and waiting time are
those of the player, so they win over params_file as well.
Through `ros2 bag play` where it is installed, else through `safe-pruner play`. Pause: the services
/rosbag2_player/toggle_paused, or /safe_pruner_play/pause and /safe_pruner_play/resume.
"""

import os

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchContext, LaunchDescription

PACKAGE = 'safe_pruner_ros'
# Of pick_place.launch.py; what is left empty keeps the value of the YAML files.
PASSED_ON = ('robot', 'policy', 'checkpoint', 'method', 'retention_ratio', 'instruction',
             'dry_run', 'rviz', 'params_file', 'activation_timeout_s', 'log_level')  # fmt: skip


def player_arguments(values: dict[str, str]) -> list[str]:
    """Command line of `safe-pruner play` for launch arguments."""
    arguments = ['play', values['bag'], '--robot-file', values['robot'] or 'sim']
    arguments += ['--rate', values['rate'], '--start-offset', values['start_offset']]
    arguments += ['--clock', values['clock'], '--player', values['player']]
    arguments += ['--wait', values['activation_timeout_s']]
    for name in ('loop', 'start_paused'):
        if values[name].lower() not in ('true', 'false'):
            raise RuntimeError(f'{name}:={values[name]} is neither true nor false')
        if values[name].lower() == 'true':
            arguments.append('--' + name.replace('_', '-'))
    for assignment in values['map'].split():
        arguments += ['--map', assignment]
    return arguments


def start(context: LaunchContext) -> list[Action]:
    names = ('bag', 'rate', 'start_offset', 'clock', 'player', 'loop', 'start_paused', 'map')
    values = {name: LaunchConfiguration(name).perform(context) for name in (*names, *PASSED_ON)}
    if not values['bag']:
        raise RuntimeError('give the recording: bag:=/path/to/bag')
    share = get_package_share_directory(PACKAGE)
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(share, 'launch', 'pick_place.launch.py')),
        launch_arguments={
            'use_sim_time': 'true',
            **{name: values[name] for name in PASSED_ON},
            'robot': values['robot'] or 'sim',
            'dry_run': values['dry_run'] or 'true',
        }.items(),
    )
    # No launch_ros Node: that appends --ros-args, which is no argument of this command line.
    program = os.path.join(get_package_prefix(PACKAGE), 'lib', PACKAGE, 'safe_pruner')
    player = ExecuteProcess(cmd=[program, *player_arguments(values)], output='screen')
    over = RegisterEventHandler(
        OnProcessExit(
            target_action=player,
            on_exit=[EmitEvent(event=Shutdown(reason='the recording is over'))],
        )
    )
    return [over, node, player]


def argument(name: str, default: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value=default, description=description)


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            argument('bag', '', 'rosbag2 folder, .mcap, .db3 or ROS 1 .bag to play'),
            argument('rate', '1.0', 'times real time'),
            argument('loop', 'false', 'true: again and again; the clock jumps back'),
            argument('start_paused', 'false', 'true: wait for the resume service'),
            argument('start_offset', '0.0', 'where in the recording to begin, seconds'),
            argument('clock', 'auto', 'auto, record, header or topic: what /clock says'),
            argument('player', 'auto', 'auto: ros2 bag play where installed; own; ros2'),
            argument('map', '', 'other topics, e.g. "head=/cam_high/image_raw"; space separated'),
            argument('robot', '', 'name in config/robots or path of a YAML file; empty: sim'),
            argument('policy', '', 'name in config/policies or path of a file; empty: embedded'),
            argument('checkpoint', '', 'weights of the policy; empty: those of the policy file'),
            argument('method', '', 'pruning method; empty: as the policy file says'),
            argument('retention_ratio', '', 'share of visual tokens kept, in (0, 1]; empty: YAML'),
            argument('instruction', '', 'what to do, where the recording does not say it'),
            argument(
                'dry_run', 'true', 'true: commands go to ~/preview, whatever params_file says'
            ),
            argument('rviz', 'false', 'true: open RViz with the attention overlays'),
            argument('params_file', '', 'ROS parameter file for the node; arguments win'),
            argument('activation_timeout_s', '60.0', 'how long node and player wait, seconds'),
            argument('log_level', 'info', 'debug, info, warn or error'),
            OpaqueFunction(function=start),
        ]
    )
