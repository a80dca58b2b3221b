//! The system's promises, each against real servers and nodes. One binary, so that it is linked once.

mod altered;
mod broken;
mod calls;
mod cli;
mod config;
mod crash;
mod events;
mod hostile;
mod http;
mod inputs;
mod modules;
mod orders;
mod outage;
mod outbox;
mod positions;
mod redeploy;
mod retry;
mod safeguards;
mod scaffold;
mod state;
mod streams;
mod switch;
mod tidy;
mod timers;
mod unreachable;
