#!/usr/bin/env python3
"""Runs the torchbus program as its users do, and looks at exit codes, messages and files.

usage: cli_test.py [CLASS[.test]...]; the program is the one in $TORCHBUS_BUILD, default build/release.
"""
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / os.environ.get("TORCHBUS_BUILD", "build/release") / "src/cli/torchbus"
PATIENCE_S = 120  # for whatever takes a second on an idle machine; a hang, not slowness, is the failure
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHBUS_")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "LC_ALL": "C"}
COMMANDS = ["train", "evaluate", "predict", "check", "schedule", "summary", "callbacks", "schema", "events", "graph", "diff", "explain", "plot", "watch", "replay", "serve", "checkpoint", "data"]

RUN = {
    "seed": 3,
    "output": "out",
    "model": {"kind": "mlp", "inputs": 16, "hidden": [8], "classes": 4},
    "data": {"kind": "synthetic", "samples": 400},
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "schedule": {"kind": "cosine"},
    "train": {"epochs": 3, "batch_size": 16, "eval_batch_size": 24},  # 100 samples for evaluation: the last batch is not full
    "callbacks": [{"kind": "metrics", "accuracy": True}, {"kind": "gradient_clipping", "max_norm": 1.0},
                  {"kind": "terminate_on_nan"}, {"kind": "progress_bar"}],
}
# A step takes a second or more on one core: 0.15 TFLOP.
SLOW = RUN | {
    "model": {"kind": "mlp", "inputs": 1024, "hidden": [2048, 2048], "classes": 4},
    "data": {"kind": "synthetic", "samples": 4 * 4096, "features": 1024},
    "train": {"epochs": 1000, "batch_size": 4096},
    "callbacks": [{"kind": "progress_lines", "every": "1step"}, {"kind": "progress_bar"}],
}


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Case(unittest.TestCase):
    """Has a temporary folder, which is the working folder of the program, with a run file in it."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="torchbus-cli-")))
        self.write_run(RUN)

    def enterContext(self, manager):  # in unittest since Python 3.11
        entered = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return entered

    def write_run(self, run):
        (self.folder / "run.json").write_text(json.dumps(run, indent=2))

    def history(self):
        return json.loads((self.folder / "out/history.json").read_text())

    def outcome(self, *command, environment=(), stdout=subprocess.PIPE):
        return subprocess.run([str(part) for part in command], cwd=self.folder, env=ENVIRONMENT | dict(environment),
                              stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)

    def torchbus(self, *arguments, code=0, **how):
        """Runs the program, requires the exit code, and returns standard output for 0, else standard error."""
        done = self.outcome(PROGRAM, *arguments, **how)
        self.assertEqual(done.returncode, code, f"torchbus {' '.join(map(str, arguments))}: {done.stdout or ''}{done.stderr}")
        return done.stdout if code == 0 else done.stderr

    def refused(self, code, message, *arguments, **how):
        """The program ends with the code, and says the message and nothing else."""
        self.assertEqual(self.torchbus(*arguments, code=code, **how), f"torchbus: {message}\n")

    def start(self, *arguments):
        return self.enterContext(Running(self, arguments))


class Running:
    """The program under way, its output in files; killed where the test does not wait for its end."""

    def __init__(self, case, arguments):
        self.case, self.folder = case, case.folder
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            self.process = subprocess.Popen([PROGRAM, *arguments], cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def said(self, stream="stderr"):
        return (self.folder / stream).read_text(errors="replace")

    def wait_until(self, claim, what):
        deadline = time.monotonic() + PATIENCE_S
        while not claim():
            self.case.assertIsNone(self.process.poll(), f"ended before {what}: {self.said()}")
            self.case.assertLess(time.monotonic(), deadline, f"no {what} within {PATIENCE_S} s: {self.said()}")
            time.sleep(0.01)

    def wait_for_line(self, pattern, stream="stderr"):
        self.wait_until(lambda: re.search(pattern, self.said(stream), re.M), f"'{pattern}'")

    def signals(self, field):
        """A set of signals in /proc: SigCgt has those with a handler, ShdPnd those not delivered yet."""
        mask = re.search(rf"^{field}:\s*(\w+)", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)
        return int(mask[1], 16) if mask else 0

    def wait_for_handler(self):
        self.wait_until(lambda: self.signals("SigCgt") & 1 << signal.SIGINT - 1, "handler for SIGINT")

    def wait_for_delivery(self, number):
        self.wait_until(lambda: not self.signals("ShdPnd") & 1 << number - 1, "delivery of the signal")

    def end(self):
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.case.fail(f"still running after {PATIENCE_S} s: {self.said()}")


class Reference(Case):
    """What the program prints without a run file."""

    def test_help_has_examples_and_needs_no_libtorch(self):
        seconds = []
        for _ in range(11):
            began = time.perf_counter()
            printed = self.torchbus("--help")
            seconds.append(time.perf_counter() - began)
        print(f"median of 11 runs of --help: {statistics.median(seconds) * 1000:.1f} ms", flush=True)
        self.assertIn("Examples:\n  torchbus data fetch mnist\n", printed)
        for command in COMMANDS:
            self.assertRegex(printed, rf"(?m)^  {command} ")
        tools = [tool for tool in (["readelf", "-d"], ["ldd"]) if shutil.which(tool[0])]
        self.assertTrue(tools, "neither readelf nor ldd is there")
        for tool in tools:
            listed = self.outcome(*tool, PROGRAM).stdout
            self.assertIn("libc.so", listed)
            self.assertNotRegex(listed, r"libtorch|libc10")  # libtorchbus.so, too

    def test_version(self):
        self.assertRegex(self.torchbus("--version"), r"^torchbus \d+\.\d+\.\d+\n$")

    def test_every_command_has_help(self):
        for command in [*COMMANDS, "data fetch"]:
            with self.subTest(command):
                self.assertIn("Usage:", self.torchbus(*command.split(), "--help"))

    def test_a_usage_error_names_what_is_wrong(self):
        for command, named in [("evalate", "evalate"), ("", "subcommand"), ("train", "RUN.json"), ("train run.json --epochs 3", "--epochs"),
                               ("graph --format svg", "svg"), ("data fetch cifar", "cifar")]:
            with self.subTest(command):
                self.assertIn(named, self.torchbus(*command.split(), code=2))

    def test_the_graph_has_every_state(self):
        header = (ROOT / "include/torchbus/state_machine.hpp").read_text()
        states = re.findall(r"^    (\w+),", re.search(r"enum class State .*?\{(.*?)\};", header, re.S)[1], re.M)
        self.assertGreater(len(states), 10)
        graphs = {"mermaid": self.torchbus("graph", "--format", "mermaid"), "dot": self.torchbus("graph", "--format", "dot")}
        self.assertTrue(graphs["mermaid"].startswith("stateDiagram-v2\n"))
        self.assertTrue(graphs["dot"].startswith("digraph torchbus {\n"))
        self.assertEqual(self.torchbus("graph"), graphs["mermaid"])
        for name, graph in graphs.items():
            for state in states:
                self.assertRegex(graph, rf"\b{snake_case(state)}\b", name)

    def test_the_readme_shows_the_graph_and_the_table_of_callbacks_as_they_are(self):
        readme = (ROOT / "README.md").read_text()
        self.assertIn("```mermaid\n" + self.torchbus("graph") + "```\n", readme)
        self.assertIn("\n\n" + self.torchbus("callbacks", "--markdown") + "\n", readme,
                      "put the output of `torchbus callbacks --markdown` into the README")

    def test_the_schedule_is_drawn_in_the_terminal_and_as_svg(self):
        drawn = self.torchbus("schedule", "run.json", "--svg", "curve.svg")
        self.assertTrue(drawn.startswith("learning_rate: first 0.1, largest 0.1, last "), drawn)
        self.assertGreater(len(drawn.splitlines()), 8)
        svg = (self.folder / "curve.svg").read_text()
        self.assertIn("<svg ", svg)
        self.assertIn("learning_rate", svg)
        self.write_run({key: value for key, value in RUN.items() if key != "schedule"})
        self.assertIn("there is no schedule", self.torchbus("schedule", "run.json"))

    def test_the_schedule_of_each_group_and_its_mistakes(self):
        groups = {"optimizer": {"kind": "sgd", "learning_rate": 0.1, "groups": [{"parameters": ["*.bias"], "learning_rate_factor": 10}]}}
        self.write_run(RUN | groups)
        drawn = self.torchbus("schedule", "run.json")
        # Where each curve begins: at the rate that its group came with.
        self.assertEqual([float(rate) for rate in re.findall(r"(?m)^learning_rate of group \d: first ([\d.e-]+),", drawn)], [1.0, 0.1], drawn)
        schedule = {"kind": "learning_rate_schedule", "schedule": {"kind": "linear"}, "groups": [1.0]}
        self.write_run({key: value for key, value in (RUN | groups | {"callbacks": [schedule]}).items() if key != "schedule"})
        mistake = "run.json: learning_rate_schedule: groups: 1 were given, and the optimizer has 2 parameter groups; give one each, or none"
        for command in ("schedule", "check", "train"):
            self.assertIn(f"torchbus: {mistake}\n", self.torchbus(command, "run.json", code=2))

    def test_events_lists_all_and_tells_of_one(self):
        header = (ROOT / "include/torchbus/events.hpp").read_text()
        events = set(re.findall(r"^struct (\w+)", header, re.M)) - {"Scope", "MicroBatch", "Forward", "Backward", "OptimizerStep"}
        listed = re.findall(r"^(\w+)$", self.torchbus("events"), re.M)
        self.assertEqual(sorted(listed), sorted(map(snake_case, events)))
        self.assertTrue(self.torchbus("events", "gradients_ready").startswith("gradients_ready\n    fires      once an update"))
        self.refused(2, "unknown event 'gradients_redy'; did you mean 'gradients_ready'? (torchbus events lists them)",
                     "events", "gradients_redy")

    def test_the_schema_of_the_stream_names_every_event(self):
        schema = json.loads(self.torchbus("events", "--schema"))
        self.assertEqual((schema["$schema"], schema["$id"]), ("https://json-schema.org/draft/2020-12/schema", "torchbus:events:1"))
        self.assertLessEqual({"specversion", "id", "source", "type", "data"}, set(schema["required"]))
        events = set(re.findall(r"^(\w+)$", self.torchbus("events"), re.M))
        self.assertLessEqual(events, set(schema["$defs"]))
        chosen = {one["if"]["properties"]["type"]["const"]: one["then"]["properties"]["data"]["$ref"] for one in schema["allOf"]}
        for event in events:
            self.assertEqual(chosen[f"torchbus.{event}"], f"#/$defs/{event}")

    def test_callbacks_lists_all_and_the_options_of_one(self):
        listed = re.findall(r"^(\w+) +[A-Z]", self.torchbus("callbacks"), re.M)
        headers = {path.stem for path in (ROOT / "include/torchbus/callbacks").glob("*.hpp")} - {"registry"}
        self.assertEqual(sorted(listed), sorted(headers))
        self.assertRegex(self.torchbus("callbacks", "gradient_clipping"), r"(?m)^  max_norm +number +default 1\.0 .*; may be changed while a run is under way$")
        self.assertRegex(self.torchbus("callbacks", "gradient_clipping"), r"(?m)^  norm_type +number .*; > 0$")
        for title, words in [("listens", "gradients_ready"), ("reads", "gradients"), ("writes", "gradients.change"),
                             ("publishes", r"grad_norm \(at gradients_ready, transform\)")]:
            self.assertRegex(self.torchbus("callbacks", "gradient_clipping"), rf"(?m)^{title} +{words}$")
        self.refused(2, "unknown callback 'gradient_cliping'; did you mean 'gradient_clipping'? (torchbus callbacks lists them)",
                     "callbacks", "gradient_cliping")


    def test_the_schema_knows_every_key_and_callback(self):
        schema = json.loads(self.torchbus("schema"))
        self.assertEqual(schema["$schema"], "https://json-schema.org/draft/2020-12/schema")
        self.assertLessEqual(set(RUN), set(schema["properties"]))
        kinds = [one["properties"]["kind"]["const"] for one in schema["$defs"]["callback"]["oneOf"]]
        self.assertEqual(kinds, re.findall(r"^(\w+) +[A-Z]", self.torchbus("callbacks"), re.M))
        self.refused(2, "--plugin[0]: nowhere.so: there is no such file; expected a plug-in (a path in a run file is relative to that file)",
                     "schema", "--plugin", "nowhere.so")


class Training(Case):
    def test_evaluate_gives_what_the_last_epoch_gave(self):
        self.torchbus("train", "run.json")
        self.assertTrue((self.folder / "out/model.safetensors").exists())
        history = self.history()
        self.assertEqual([(epoch["epoch"], epoch["step"]) for epoch in history], [(1, 25), (2, 50), (3, 75)])
        evaluated = json.loads(self.torchbus("evaluate", "run.json"))
        self.assertEqual(set(evaluated), {"eval.loss", "eval.accuracy"})
        self.assertEqual(evaluated, {name: history[-1]["metrics"][name] for name in evaluated})
        self.assertGreater(evaluated["eval.accuracy"], 0.4)  # of four classes

    def test_evaluate_prints_json_whatever_the_callbacks_print(self):
        self.write_run(RUN | {"callbacks": [*RUN["callbacks"], {"kind": "progress_lines"}]})
        self.torchbus("train", "run.json")
        printed = self.torchbus("evaluate", "run.json")
        try:
            json.loads(printed)
        except ValueError:
            self.fail(f"not JSON:\n{printed}")

    def test_weights_can_be_named_and_must_be_there(self):
        self.torchbus("train", "run.json", "--set", "train.epochs=1")
        self.assertIn("eval.loss", self.torchbus("evaluate", "run.json", "--weights", "out/model.safetensors", "--set", "output="))
        self.refused(2, "run.json: there are no weights to load; give --weights FILE, or an output folder in the run file",
                     "evaluate", "run.json", "--set", "output=")
        self.refused(1, "nowhere: cannot open the file: No such file or directory", "evaluate", "run.json", "--weights", "nowhere")

    def test_set_overrides_the_run_file(self):
        self.torchbus("train", "run.json", "--set", "train.epochs=1", "--set", "callbacks[1].max_norm=2", "--set", "train.batch_size=40")
        self.assertEqual([(epoch["epoch"], epoch["step"]) for epoch in self.history()], [(1, 10)])
        self.refused(2, "run.json: callbacks[1].max_norm: -2 is out of range; give a positive number", "train", "run.json",
                     "--set", "callbacks[1].max_norm=-2")
        self.refused(2, "--set seed: expected path=value, e.g. --set optimizer.learning_rate=0.01", "train", "run.json", "--set", "seed")

    def test_a_run_file_builds_on_another_and_on_the_environment(self):
        self.write_run({"include": "parts/base.json", "output": "${WHERE:-out}", "train": {"epochs": 1}})
        (self.folder / "parts").mkdir()
        (self.folder / "parts/base.json").write_text(json.dumps(RUN))
        self.torchbus("train", "run.json")
        self.assertEqual([(epoch["epoch"], epoch["step"]) for epoch in self.history()], [(1, 25)])
        self.torchbus("train", "run.json", environment={"WHERE": "elsewhere"})
        self.assertTrue((self.folder / "elsewhere/model.safetensors").exists())
        (self.folder / "parts/base.json").write_text(json.dumps(RUN | {"model": {"kind": "mlp", "inputs": 0}}))
        self.refused(2, "parts/base.json: model.inputs: 0 is out of range; give a number of at least 1", "train", "run.json")

    def test_limit_batches_makes_a_smoke_run(self):
        self.torchbus("train", "run.json", environment={"TORCHBUS_LIMIT_BATCHES": "2"})
        self.assertEqual([epoch["step"] for epoch in self.history()], [2, 4, 6])
        self.refused(2, "run.json: TORCHBUS_LIMIT_BATCHES: 'two' is not a number of batches; give at least 1, or unset it", "train", "run.json",
                     environment={"TORCHBUS_LIMIT_BATCHES": "two"})

    def test_check_and_summary_train_nothing(self):
        checked = self.torchbus("check", "run.json")
        self.assertIn("data       synthetic: 400 training and 100 evaluation samples\n", checked)
        for callback in [*(callback["kind"] for callback in RUN["callbacks"]), "schedule"]:
            self.assertRegex(checked, rf"(?m)^    (transform|observe|report)[ a-z]* {callback}$")
        # For each event, in the order of its running.
        self.assertIn("gradients_ready\n    transform inspect    terminate_on_nan\n    transform change     gradient_clipping\n    transform decide     terminate_on_nan\n", checked)
        self.assertTrue(checked.endswith("run.json: nothing stands against this run\n"))
        reordered = self.torchbus("check", "run.json", "--set", 'callbacks=[{"kind": "mixup"}, {"kind": "device_placement"}]')
        self.assertIn("batch_ready\n    transform            device_placement\n    transform            mixup   (device_placement moves batches before mixup changes them)\n", reordered)
        # 16 x 8 weights and 8 biases, 8 x 4 weights and 4 biases.
        self.assertTrue(self.torchbus("summary", "run.json").endswith("172 parameters, 172 trainable\n"))
        self.assertFalse((self.folder / "out/model.safetensors").exists())

    def test_a_loss_that_is_not_finite_fails_the_run(self):
        said = self.torchbus("train", "run.json", "--set", "optimizer.learning_rate=1e30", code=1)
        self.assertRegex(said, r"(?m)^torchbus: terminate_on_nan: the training loss is (-?nan|-?inf) in epoch 1 after step \d+; lower the "
                               r"learning rate, clip the gradients, or look at the batch$")
        self.assertFalse((self.folder / "out/model.safetensors").exists())


class Mistakes(Case):
    def test_a_run_file_that_is_missing_or_malformed(self):
        self.refused(2, "nowhere.json: cannot open the run file: No such file or directory", "train", "nowhere.json")
        for text, place in [('{\n  "seed": 1,\n  "model": {]\n}\n', "line 3, column 13"), ('{"seed": 1', "line 1, column 11"),
                            ("", "line 1, column 1")]:
            with self.subTest(text):
                (self.folder / "run.json").write_text(text)
                self.assertTrue(self.torchbus("train", "run.json", code=2).startswith(f"torchbus: run.json: {place}: syntax error "))

    def test_an_unknown_key_and_a_value_out_of_range(self):
        self.assertTrue(self.torchbus("train", "run.json", "--set", "optimiser.kind=sgd", code=2).startswith(
            "torchbus: run.json: optimiser: unknown key; did you mean 'optimizer'? (known: "))
        self.refused(2, "run.json: optimizer.learning_rate: -0.1 is out of range; give a number of at least 0", "train", "run.json",
                     "--set", "optimizer.learning_rate=-0.1")

    def test_a_model_that_does_not_fit_the_data_is_told_in_a_few_lines(self):
        said = self.torchbus("train", "run.json", "--set", "model.inputs=17", code=1)
        self.assertIn("mat1 and mat2 shapes cannot be multiplied (16x16 and 17x8)", said)
        self.assertLess(said.count("\n"), 10, "a stack trace of LibTorch is no message")

    def test_a_composition_that_does_not_go_together_names_the_run_file(self):
        self.write_run(RUN | {"callbacks": [{"kind": "gradient_clipping"}, {"kind": "gradient_clipping", "id": "again", "by": "value"}]})
        for command in ("check", "train"):
            self.assertRegex(self.torchbus(command, "run.json", code=2), r"^torchbus: run.json: 'gradient_clipping' and 'again' both write gradients.change ")

    def test_a_label_that_is_no_class_of_the_model(self):
        said = self.torchbus("train", "run.json", "--set", "model.classes=2", "--set", "callbacks=[]", code=1)
        self.assertRegex(said, r"(?m)^torchbus: sample \d+: its label is [23], expected 0 to 1, as the model has 2 outputs; give the model more classes, or mend the label$")

    def test_an_output_folder_that_cannot_be_written(self):
        self.refused(2, "run.json: output: cannot write to the folder 'run.json/out': Not a directory; give another folder, or leave the "
                        "key out to write nothing", "train", "run.json", "--set", "output=run.json/out")


class Checkpoints(Case):
    """torchbus checkpoint, on what a run has saved and on files of Python's torch.save."""

    PYTHON_FILES = ROOT / "test/references/python_files"

    def train(self, **changes):
        saver = {"kind": "save_training_state", "folder": "states", "keep": 0}
        self.write_run(RUN | {"callbacks": [{"kind": "metrics"}, saver]} | changes)
        self.torchbus("train", "run.json")

    def damage(self, file):
        content = bytearray((self.folder / file).read_bytes())
        content[-1] ^= 1
        (self.folder / file).write_bytes(content)

    def test_states_are_listed_newest_first_and_shown(self):
        self.train()
        rows = self.torchbus("checkpoint", "ls", "states").splitlines()
        self.assertEqual([row.split()[0] for row in rows], ["step_75", "step_50", "step_25"])
        self.assertRegex(rows[0], r"^step_75 +epoch 3 +\d+\.\d KiB  the end of an epoch  \(latest\)$")
        shown = self.torchbus("checkpoint", "show", "states/step_50")
        self.assertRegex(shown, r"^states/step_50: weights of the view 'training', \d+\.\d KiB\n")
        self.assertRegex(shown, r"\n  epoch +2\n")
        self.assertRegex(shown, r"\nmodel\n  1\.bias +Float +\[8\]\n")
        (self.folder / "states/step_75/manifest.json").write_text("{")
        self.assertIn("step_75        states/step_75/manifest.json", self.torchbus("checkpoint", "ls", "states"))
        self.refused(1, "nowhere: there is no such folder; give one that a run saves to, e.g. checkpoints", "checkpoint", "ls", "nowhere")

    def test_verify_looks_at_all_and_names_what_is_damaged(self):
        self.train()
        self.assertEqual(self.torchbus("checkpoint", "verify", "states/step_25", "out/model.safetensors", self.PYTHON_FILES / "types.pt"),
                         f"states/step_25: whole\nout/model.safetensors: whole\n{self.PYTHON_FILES / 'types.pt'}: whole\n")
        self.damage("states/step_25/model.safetensors")
        self.damage("out/model.safetensors")
        done = self.outcome(PROGRAM, "checkpoint", "verify", "states/step_25", "states/step_50", "out/model.safetensors")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"^states/step_25/model\.safetensors: its checksum is not that of the manifest; the tensor '\S+' is damaged.*\n"
                                      r"states/step_50: whole\nout/model\.safetensors: tensor '\S+' is not as it was written; the file is damaged\n$")

    def test_weights_go_to_python_and_back(self):
        self.train()
        self.torchbus("checkpoint", "export", "states/step_75", "w.pt")
        self.torchbus("checkpoint", "import", "w.pt", "w.safetensors")
        self.assertEqual(self.torchbus("checkpoint", "diff", "w.safetensors", "states/step_75"), "")
        self.assertEqual(json.loads(self.torchbus("evaluate", "run.json", "--weights", "w.pt")), json.loads(self.torchbus("evaluate", "run.json")))
        self.refused(2, "w.pth: import writes safetensors; give a name that ends so (export writes other formats)", "checkpoint", "import", "w.pt", "w.pth")
        if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:  # its full set of packages is 3 GB
            read = "import sys, torch; print([list(t.shape) for t in torch.load(sys.argv[1], weights_only=True).values()])"
            self.assertEqual(self.outcome(sys.executable, "-c", read, "w.pt").stdout.strip(), "[[8], [8, 16], [4], [4, 8]]")

    def test_a_part_under_other_names(self):
        self.torchbus("checkpoint", "import", self.PYTHON_FILES / "nested.pt", "w.safetensors", "--rename", "module.*=body.*", "--skip", "*.num_batches_tracked", "--include", "body.1.*")
        self.assertEqual(re.findall(r"^  (\S+)", self.torchbus("checkpoint", "show", "w.safetensors"), re.M), ["body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var"])
        self.refused(2, "--rename module: expected FROM=TO, e.g. 'module.*=*'", "checkpoint", "show", "w.safetensors", "--rename", "module")
        self.refused(1, f"{self.PYTHON_FILES / 'two.pt'}: tensors are in 'model', 'optimizer'; choose one of them as key", "checkpoint", "show", self.PYTHON_FILES / "two.pt")
        self.assertIn("7 tensors", self.torchbus("checkpoint", "show", self.PYTHON_FILES / "two.pt", "--key", "model"))

    def test_a_python_file_that_would_run_a_command(self):
        self.assertIn("it names posix.system", self.torchbus("checkpoint", "import", self.PYTHON_FILES / "command.pt", "w.safetensors", code=1))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["run.json"])

    def test_diff_tells_tensors_and_values_apart(self):
        self.train()
        self.assertEqual(self.torchbus("checkpoint", "diff", "states/step_25", "states/step_25"), "")
        done = self.outcome(PROGRAM, "checkpoint", "diff", "states/step_25", "states/step_50")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"(?m)^model/1\.weight: \d+ of 128 elements differ, by \S+ at most$")
        self.assertRegex(done.stdout, r"(?m)^position/\S+: 25 and 50$")
        self.torchbus("checkpoint", "export", "states/step_25", "part.safetensors", "--skip", "1.*")
        done = self.outcome(PROGRAM, "checkpoint", "diff", "part.safetensors", "states/step_25")
        self.assertEqual(done.stdout, "1.bias: only in the second\n1.weight: only in the second\n")

    def test_the_average_lies_between(self):
        self.train()
        self.torchbus("checkpoint", "average", "states/step_25", "states/step_50", "mean.safetensors")
        self.torchbus("checkpoint", "average", "states/step_25", "states/step_25", "same.pt")
        self.assertEqual(self.torchbus("checkpoint", "diff", "same.pt", "states/step_25"), "")
        distance = {}
        for other in ("states/step_25", "states/step_50"):
            shown = self.outcome(PROGRAM, "checkpoint", "diff", "mean.safetensors", other).stdout
            distance[other] = float(re.search(r"^1\.weight: .* by (\S+) at most", shown, re.M)[1])
        self.assertAlmostEqual(distance["states/step_25"], distance["states/step_50"], delta=0.01 * distance["states/step_25"])

    def test_a_run_begins_with_weights(self):
        self.train()
        begun = self.torchbus("evaluate", "run.json", "--weights", "states/step_75")
        frozen = {"optimizer": {"kind": "sgd", "learning_rate": 0.0}, "output": "again"}
        self.train(**frozen, weights="out/model.safetensors")
        self.assertEqual(self.torchbus("evaluate", "run.json"), begun)
        self.torchbus("checkpoint", "export", "out/model.safetensors", "other.pt", "--rename", "1.*=body.*", "--rename", "3.*=head.*")
        self.train(**frozen, weights={"file": "other.pt", "rename": [{"from": "body.*", "to": "1.*"}, {"from": "head.*", "to": "3.*"}]})
        self.assertEqual(self.torchbus("evaluate", "run.json"), begun)
        self.write_run(RUN | {"weights": {"file": "other.pt", "rename": [{"from": "body.*", "to": "1.*"}], "strict": False}})
        self.assertIn("run.json: weights: random weights stay in 3.weight, 3.bias", self.outcome(PROGRAM, "check", "run.json").stderr)
        self.write_run(RUN | {"weights": "other.pt"})
        self.assertIn("other.pt: the weights do not fit the model: '1.weight' is missing", self.torchbus("check", "run.json", code=1))
        self.write_run(RUN | {"weights": {"strict": True}})
        self.assertIn("run.json: weights: a file is missing", self.torchbus("check", "run.json", code=2))


class Mnist(Case):
    """With a data set of its own: rows of noise, brighter where the label says."""

    LABELS = {"train": [i * 7 % 10 for i in range(200)], "t10k": [i * 3 % 10 for i in range(70)]}

    def setUp(self):
        super().setUp()
        noise = random.Random(1)
        for part, labels in self.LABELS.items():
            pixels = bytes(noise.randrange(128) + (127 if row // 2 == label else 0)
                           for label in labels for row in range(28) for _ in range(28))
            (self.folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, len(labels), 28, 28) + pixels)
            (self.folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + bytes(labels))
        self.write_run(RUN | {"model": {"kind": "mlp", "inputs": 784, "hidden": [32], "classes": 10},
                              "data": {"kind": "mnist", "folder": ".", "flatten": True},
                              "optimizer": {"kind": "adam", "learning_rate": 0.0003}})

    def test_predictions_are_those_that_evaluate_counts(self):
        self.torchbus("train", "run.json")
        self.assertEqual(self.torchbus("predict", "run.json", "--to", "predictions"), "")
        lines = [json.loads(line) for line in (self.folder / "predictions").read_text().splitlines()]
        labels = self.LABELS["t10k"]
        self.assertEqual([line["index"] for line in lines], list(range(len(labels))))
        for line in lines:
            self.assertEqual(len(line["output"]), 10)
            self.assertEqual(line["class"], line["output"].index(max(line["output"])))
        correct = sum(line["class"] == label for line, label in zip(lines, labels))
        self.assertEqual(json.loads(self.torchbus("evaluate", "run.json"))["eval.accuracy"], correct / len(labels))
        self.assertTrue(10 < correct < 70, f"{correct} of 70 tells little")
        self.assertEqual(self.torchbus("predict", "run.json"), (self.folder / "predictions").read_text())

    def test_a_folder_without_the_files(self):
        self.refused(1, "run.json: data: /nonexistent: holds no train-images-idx3-ubyte, expected the MNIST files; fetch them with 'torchbus data fetch "
                        "mnist', or name the folder they lie in", "train", "run.json", "--set", "data.folder=/nonexistent")

    def test_a_truncated_file(self):
        os.truncate(self.folder / "train-images-idx3-ubyte", 16 + 200 * 784 - 100)
        self.refused(1, "run.json: data: ./train-images-idx3-ubyte: 156716 bytes, expected 156816; the file is truncated; fetch it again with 'torchbus "
                        "data fetch mnist'", "train", "run.json")


class FullDisk(Case):
    def mounted(self, options, then):
        """A command under which `out` is a tmpfs for the arguments that follow; skips where none can be mounted."""
        (self.folder / "out").mkdir()
        mount = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", f'mount -t tmpfs -o {options} torchbus out || exit 99; {then}', "sh"]
        try:
            if (found := self.outcome(*mount, "true")).returncode != 0:
                self.skipTest(f"no tmpfs can be mounted here: {found.stderr.strip()}")
        except FileNotFoundError:
            self.skipTest("no tmpfs can be mounted here: unshare is not installed")
        return mount

    def train_on(self, size, *arguments):
        """Trains with an output folder of that size, mounted for this one command. Returns what was said, and the files left."""
        mount = self.mounted(f"size={size}", '"$@"; code=$?; mkdir left; cp -a out/. left; exit $code')
        (self.folder / "left").rmdir()
        done = self.outcome(*mount, PROGRAM, "train", "run.json", *arguments)
        self.assertEqual(done.returncode, 1, done.stderr)
        return done.stderr, sorted(path.name for path in (self.folder / "left").iterdir())

    def test_no_room_for_the_weights(self):
        said, left = self.train_on("16k", "--set", "model.hidden=[1024]")  # 86 kB
        self.assertIn("torchbus: out/model.safetensors.part: cannot write: No space left on device; nothing was changed\n", said)
        self.assertEqual(left, [])

    def test_no_room_for_the_history(self):
        said, left = self.train_on("4k")  # one page: the weights take it
        self.assertIn("torchbus: out/history.json.part: cannot write: No space left on device; nothing was changed\n", said)
        self.assertEqual(left, ["model.safetensors"], "an empty file is no history")

    def test_no_room_for_predictions(self):
        self.torchbus("train", "run.json")
        self.refused(1, "/dev/full: cannot write the predictions: No space left on device; give another file with --to, or make room", "predict", "run.json", "--to", "/dev/full")

    def test_predictions_that_cannot_be_made_leave_the_old_ones(self):
        (self.folder / "predictions").write_text("those of yesterday")
        self.torchbus("predict", "run.json", "--to", "predictions", "--weights", "nowhere", code=1)
        self.assertEqual((self.folder / "predictions").read_text(), "those of yesterday")
        self.refused(1, "run.json/x.part: cannot create the file: Not a directory; nothing was changed", "predict", "run.json", "--to", "run.json/x", "--weights", self.weights())

    def weights(self):
        self.torchbus("train", "run.json")
        return "out/model.safetensors"

    def test_an_output_folder_on_a_disk_that_is_mounted_read_only(self):
        mount = self.mounted("ro", '"$@"')
        done = self.outcome(*mount, PROGRAM, "train", "run.json")
        self.assertEqual((done.returncode, done.stderr), (2, "torchbus: run.json: output: cannot write to the folder 'out': Read-only file system; give another "
                                                             "folder, or leave the key out to write nothing\n"))

    def test_results_that_cannot_be_printed_are_a_failure(self):
        self.torchbus("train", "run.json")
        for command in ["evaluate run.json", "predict run.json", "check run.json", "summary run.json", "callbacks", "events", "graph"]:
            with self.subTest(command), open("/dev/full", "w") as full:
                self.torchbus(*command.split(), code=1, stdout=full)


class Terminal(Case):
    """On a terminal the bar is drawn in its width; without one it is not."""

    def drawn(self, columns, **environment):
        parent, child = pty.openpty()
        try:
            fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            # Slow enough that a bar is drawn in every epoch.
            self.write_run(RUN | {"data": {"kind": "synthetic", "samples": 40000}, "train": {"epochs": 1, "batch_size": 16}})
            kept = {name: value for name, value in ENVIRONMENT.items() if name not in ("NO_COLOR", "TERM", "COLUMNS")}
            process = subprocess.Popen([PROGRAM, "train", "run.json"], cwd=self.folder, env=kept | {"TERM": "xterm"} | environment, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=child)
            os.close(child)
            child = None
            said = b""
            while True:
                try:
                    part = os.read(parent, 65536)
                except OSError:  # the other side is closed
                    break
                if not part:
                    break
                said += part
            self.assertEqual(process.wait(PATIENCE_S), 0, said)
            return said.decode()
        finally:
            os.close(parent)
            if child is not None:
                os.close(child)

    def test_a_bar_fits_the_terminal(self):
        widest = {}
        for columns in (40, 160):
            drawn = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", self.drawn(columns))
            lines = [line for line in re.split(r"[\r\n]+", drawn) if re.match(r"epoch 1/1.* \d+/2500 ", line)]
            self.assertTrue(lines, f"nothing was drawn: {drawn}")
            widest[columns] = max(lines, key=len)
            self.assertLess(len(widest[columns]), columns)
        self.assertEqual(len(widest[40]), 39, "what does not fit is cut off at the edge")
        self.assertRegex(widest[160], r"^epoch 1/1 [ █▏▎▍▌▋▊▉]{40}│ \d+/2500  .*samples/s  ETA \d+:\d\d$")

    def test_colour_unless_it_is_not_wanted(self):
        self.assertRegex(self.drawn(80), r"\x1b\[\d+m")
        self.assertNotRegex(self.drawn(80, NO_COLOR="1"), r"\x1b\[\d+m")

    def test_a_dumb_terminal_gets_lines(self):
        said = self.drawn(80, TERM="dumb")
        self.assertNotIn("\x1b", said)
        self.assertIn("epoch 1/1: train loss", said)


class Signals(Case):
    ENDLESS = ("train", "run.json", "--set", "train.epochs=1000000")

    def stopped(self, running, number, name, code):
        """One signal stops the run in good order: it says by whom, and writes weights and history."""
        running.process.send_signal(number)
        self.assertEqual(running.end(), code, running.said())
        self.assertRegex(running.said(), rf"(?m)^stopped after \d+ steps by {name}: {name} was received$")
        # What was cut short does not take the place of a trained model.
        self.assertTrue((self.folder / "out/interrupted.safetensors").exists())
        self.assertTrue((self.folder / "out/interrupted_history.json").exists())
        self.assertFalse((self.folder / "out/model.safetensors").exists())

    def test_ctrl_c_stops_the_run_in_good_order(self):
        running = self.start(*self.ENDLESS)
        running.wait_for_line(r"^epoch 1/1000000: train loss ")
        self.stopped(running, signal.SIGINT, "SIGINT", 130)

    def test_sigusr2_stops_the_run_with_0(self):
        running = self.start(*self.ENDLESS)
        running.wait_for_line(r"^epoch 1/1000000: ")
        self.stopped(running, signal.SIGUSR2, "SIGUSR2", 0)

    def test_sigusr1_goes_on_and_sigterm_stops(self):
        running = self.start(*self.ENDLESS)
        running.wait_for_line(r"^epoch 1/1000000: ")
        running.process.send_signal(signal.SIGUSR1)
        running.wait_for_delivery(signal.SIGUSR1)
        epochs = running.said().count("epoch ")
        running.wait_until(lambda: running.said().count("epoch ") > epochs + 2, "further epochs after SIGUSR1")
        self.stopped(running, signal.SIGTERM, "SIGTERM", 143)

    def test_a_second_ctrl_c_ends_at_once(self):
        self.write_run(SLOW)
        running = self.start("train", "run.json")
        running.wait_for_line(r"^epoch 1, step 1: ", "stderr")
        time.sleep(0.3)  # into the next step
        running.process.send_signal(signal.SIGINT)
        running.wait_for_delivery(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        self.assertEqual(running.end(), 130, running.said())
        self.assertNotIn("stopped after", running.said())
        self.assertFalse((self.folder / "out/model.safetensors").exists())

    def test_ctrl_c_before_the_first_step_is_over(self):
        self.write_run(SLOW)
        running = self.start("train", "run.json")
        running.wait_for_handler()
        running.process.send_signal(signal.SIGINT)
        self.assertEqual(running.end(), 130, running.said())
        self.assertRegex(running.said(), r"(?m)^stopped after [01] steps by SIGINT: SIGINT was received$")

    def test_sigusr1_at_any_time_ends_nothing_and_takes_no_file(self):
        running = self.start("train", "run.json")
        running.wait_for_handler()
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGUSR1)
            time.sleep(0.001)
        self.assertEqual(running.end(), 0, running.said())
        self.assertTrue((self.folder / "out/model.safetensors").exists())

    def test_ctrl_c_before_the_run(self):
        # Nothing catches the signal yet while LibTorch is loaded.
        for delay in (0.0, 0.05, 0.1):
            with self.subTest(delay):
                running = self.start(*self.ENDLESS)
                time.sleep(delay)
                running.process.send_signal(signal.SIGINT)
                self.assertIn(running.end(), (130, -signal.SIGINT), running.said())


def main():
    if not os.access(PROGRAM, os.X_OK):
        print(f"{PROGRAM} is not built")
        return 77
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so would the program
    loader = unittest.TestLoader()
    names = sys.argv[1:]
    module = sys.modules["__main__"]
    tests = loader.loadTestsFromNames(names, module) if names else loader.loadTestsFromModule(module)
    return 0 if unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(tests).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
