#pragma once
/// SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 beyond a run. While one is under way the trainer catches them, see
/// TrainerOptions::handle_signals.

namespace torchbus {

/// Catches the four until the process ends, for a program that has more to do than its run: one that arrives before the run
/// is taken up at its start, one that arrives after it ends nothing. A second SIGINT or SIGTERM ends the process at once.
void catch_signals_until_exit();

}  // namespace torchbus
