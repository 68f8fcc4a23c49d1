#!/usr/bin/env python3
"""Tells what TensorBoard's own reader finds in folders of event files: it runs in TensorBoard's environment.

The first line it writes is TensorBoard's version. Then each line it reads is a folder, which it reads from the beginning, or empty, at
which it reads on in the last folder. It answers with all that it has of that folder, a line of JSON.
"""
import importlib.metadata
import json
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

FIELDS = {"hparam_infos": lambda experiment: [info.name for info in experiment.hparam_infos],
          "metric_infos": lambda experiment: [info.name.tag for info in experiment.metric_infos]}


def number(value):
    return value if value == value and abs(value) != float("inf") else repr(value)


def hyper_parameters(accumulator):
    found = {}
    for tag, content in accumulator.summary_metadata.items():
        if content.plugin_data.plugin_name != "hparams":
            continue
        if tag == hparams.EXPERIMENT_TAG:
            experiment = hparams.parse_experiment_plugin_data(content.plugin_data.content)
            found |= {name: read(experiment) for name, read in FIELDS.items()}
        elif tag == hparams.SESSION_START_INFO_TAG:
            start = hparams.parse_session_start_info_plugin_data(content.plugin_data.content)
            found["values"] = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        elif tag == hparams.SESSION_END_INFO_TAG:
            found["status"] = hparams.parse_session_end_info_plugin_data(content.plugin_data.content).status
    return found


def found_by(accumulator):
    found = {"scalars": {}, "histograms": {}, "texts": {}, "hyper_parameters": hyper_parameters(accumulator)}
    for tag in accumulator.Tags()["scalars"]:
        found["scalars"][tag] = [[event.step, number(event.value)] for event in accumulator.Scalars(tag)]
    for tag in accumulator.Tags()["histograms"]:
        found["histograms"][tag] = [[event.step, event.histogram_value.num, event.histogram_value.sum, event.histogram_value.min, event.histogram_value.max,
                                     list(event.histogram_value.bucket_limit), list(event.histogram_value.bucket)] for event in accumulator.Histograms(tag)]
    for tag in accumulator.Tags()["tensors"]:
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "text":
            found["texts"][tag] = [[event.step, [text.decode() for text in tensor_util.make_ndarray(event.tensor_proto).ravel()]] for event in accumulator.Tensors(tag)]
    return found


def main():
    print(importlib.metadata.version("tensorboard"), flush=True)
    for line in sys.stdin:
        if folder := line.rstrip("\n"):
            accumulator = event_accumulator.EventAccumulator(folder, size_guidance=event_accumulator.STORE_EVERYTHING_SIZE_GUIDANCE)
        accumulator.Reload()
        print(json.dumps(found_by(accumulator)), flush=True)


if __name__ == "__main__":
    main()
