//! `pelton call`: asks a function and prints its reply.

use clap::Args;
use pelton_runtime::control::call::{self, CallOptions, Called};
use pelton_runtime::nats::{self, REQUEST_TIMEOUT};

use super::publish::{body, headers};
use crate::global::Global;

/// Call a function and wait for its reply
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton call orders '{\"order_id\":\"o-1\"}' --subject orders.o-1.created\n  \
    pelton call quote @cart.json --timeout 10s --id cart-17\n  echo '{}' | pelton call quote - --json\n\n\
    The reply goes to standard output. A refusal, or no reply in time, goes to standard error and ends with a code other than 0. \
    The same call again with the same --id is done once and gets the same reply."
)]
pub struct CallArgs {
    /// The function.
    function: String,
    /// The body: text, @FILE, or - for standard input.
    #[arg(default_value = "")]
    body: String,
    /// Which of its handlers: the subject it is to see. Default: that of the only handler.
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// A header, NAME:VALUE; may be repeated.
    #[arg(long, short = 'H', value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// What makes the same call twice one call. Default: a new one.
    #[arg(long)]
    id: Option<String>,
    /// Of which app. Default: the manifest's, else the only one there is.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
}

/// Calls.
pub async fn run(args: CallArgs, global: &Global) -> anyhow::Result<()> {
    let options = CallOptions {
        subject: args.subject,
        id: args.id,
        headers: headers(&args.header)?,
        timeout: global.connection.timeout.unwrap_or(REQUEST_TIMEOUT),
    };
    let body = body(&args.body).await?;
    let client = global.connect().await?;
    let js = nats::jetstream(&client);
    let app = global.app(args.app, &js).await?;
    let called = call::call(&client, &app, &args.function, options, body).await?;
    let output = global.output();
    if output.is_json() {
        return output.document(&called, |_: &Called| String::new());
    }
    output.raw(&called.data)
}
