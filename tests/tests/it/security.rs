//! Servers that demand something of who connects: TLS with a private authority, client certificates, TLS before the
//! greeting, a user, a token, an NKey, an operator's credentials. With it, what a node is told by flags, variables or
//! its file serves an event; without it or with something else, everything that connects says so and ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::orders::{body, subject};
use pelton_tests::{
    Certificates, NatsServer, Node, Operator, Output, Pelton, Project, build, eventually, project,
};
use serde_json::Value;

/// A login that is refused is refused at once; the rest is what a busy machine adds.
const SOON: Duration = Duration::from_secs(30);
/// What no log, listing or error may show.
const PASSWORD: &str = "correct-horse-battery";
const TOKEN: &str = "t0ken-of-the-node";
const WRONG: &str = "wrong-horse-battery";

/// One thing that is said to who connects: the name of the setting in the file, its flag and variable, and its value.
type Said<'a> = (&'a str, String);

/// How a command is told.
#[derive(Debug, Clone, Copy)]
enum By {
    Flags,
    Variables,
    File,
}

/// A server and a project that is to be deployed to it.
struct Scene {
    server: NatsServer,
    project: Project,
}

impl Scene {
    async fn start(config: &str) -> Result<Self> {
        let orders = build::component("orders")?;
        let mut text = project::SHOP_STREAMS.to_owned();
        text += &project::keyed("orders", &orders, 2, "");
        text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
        Ok(Self {
            server: NatsServer::start_with(config).await?,
            project: Project::new(&text)?,
        })
    }

    /// Commands that are told this, and the arguments that they need for it. A file is the node's alone.
    fn told(&self, said: &[Said<'_>], by: By) -> Result<(Pelton, Vec<String>)> {
        let mut pelton = Pelton::new("", self.project.path())?;
        pelton.unset_env("NATS_URL");
        let mut all = vec![("server", self.server.url())];
        all.extend(said.iter().cloned());
        let mut flags = Vec::new();
        match by {
            By::Flags => {
                for (key, value) in &all {
                    // A flag that is true or false takes its value that way only.
                    flags.push(format!("--{key}={value}"));
                }
            }
            By::Variables => {
                for (key, value) in &all {
                    pelton.set_env(variable(key)?, value);
                }
            }
            By::File => {
                let path = self.project.file("node.toml", file(&all).as_bytes())?;
                flags.extend(["--config".to_owned(), path.display().to_string()]);
            }
        }
        Ok((pelton, flags))
    }

    /// Deploys, lets a node handle an event, and looks for secrets in everything that was said meanwhile.
    async fn serves(
        &self,
        said: &[Said<'_>],
        node: By,
        commands: By,
        secrets: &[&str],
    ) -> Result<()> {
        let (pelton, flags) = self.told(said, commands)?;
        let run = async |words: &[&str]| -> Result<Output> {
            let output = pelton.ok(&line(words, &flags)).await?;
            hidden(&(output.stdout.clone() + &output.stderr), secrets)?;
            Ok(output)
        };
        run(&["deploy"]).await?;

        let (starter, node_flags) = self.told(said, node)?;
        let shown = starter
            .ok(&line(&["run", "--print-config"], &node_flags))
            .await?;
        hidden(&shown.stdout, secrets)?;
        // A level at which the client tells how it connects.
        let mut args = vec!["--log-level=info,pelton_runtime=trace,async_nats=trace"];
        args.extend(node_flags.iter().map(String::as_str));
        let mut node = Node::start(&starter, &args)?;
        let created = body("o-1", "created").to_string();
        run(&["publish", &subject("o-1", "created"), &created]).await?;
        let state = eventually("the order to be created", || async {
            let words = line(&["state", "get", "orders.o-1"], &flags);
            let output = pelton.run(&words).await?;
            Ok((output.code == Some(0)).then_some(output.stdout))
        });
        ensure!(state.await?.contains("created"));
        run(&["function", "info", "orders", "--json"]).await?;
        ensure!(node.terminate(SOON).await?.success(), "{}", node.log()?);
        ensure!(node.log()?.contains("serving"), "{}", node.log()?);
        hidden(&node.log()?, secrets)
    }

    /// Neither a node nor a deploy goes on with this: each ends soon, and says `words`.
    async fn refuses(
        &self,
        said: &[Said<'_>],
        by: By,
        words: &[&str],
        secrets: &[&str],
    ) -> Result<()> {
        let (pelton, flags) = self.told(said, by)?;
        let mut commands = vec!["run"];
        if !matches!(by, By::File) {
            commands.push("deploy");
        }
        for command in commands {
            let output = pelton.refused(&line(&[command], &flags), words).await?;
            ensure!(output.took < SOON, "not soon: {output:#?}");
            let error = output
                .stderr
                .lines()
                .find(|line| line.starts_with("error: "));
            let error = error.with_context(|| format!("no error: {output:#?}"))?;
            ensure!(
                error.contains("127.0.0.1") && error.contains("; "),
                "{error}"
            );
            hidden(&(output.stdout.clone() + &output.stderr), secrets)?;
        }
        Ok(())
    }
}

fn line(words: &[&str], flags: &[String]) -> Vec<String> {
    let words = words.iter().map(|word| (*word).to_owned());
    words.chain(flags.iter().cloned()).collect()
}

fn hidden(text: &str, secrets: &[&str]) -> Result<()> {
    for secret in secrets {
        ensure!(!text.contains(secret), "a secret is shown: {text}");
    }
    Ok(())
}

fn variable(key: &str) -> Result<&'static str> {
    Ok(match key {
        "server" => "NATS_URL",
        "user" => "NATS_USER",
        "password" => "NATS_PASSWORD",
        "token" => "NATS_TOKEN",
        "creds" => "NATS_CREDS",
        "nkey" => "NATS_NKEY",
        "tls-cert" => "NATS_CERT",
        "tls-key" => "NATS_KEY",
        "tls-ca" => "NATS_CA",
        "tls-first" => "PELTON_TLS_FIRST",
        other => anyhow::bail!("{other} has no variable here"),
    })
}

fn file(said: &[Said<'_>]) -> String {
    let mut text = "[nats]\n".to_owned();
    for (key, value) in said {
        let bare = *key == "tls-first";
        text += &if bare {
            format!("{key} = {value}\n")
        } else {
            format!("{key} = {value:?}\n")
        };
    }
    text
}

fn of(path: &Path) -> String {
    path.display().to_string()
}

/// The `tls` block of a server; `more` goes into it.
fn tls(certificates: &Certificates, more: &str) -> String {
    format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, {more} }}\n",
        certificates.certificate("server"),
        certificates.key("server"),
        certificates.certificate("ca"),
    )
}

fn trusts(certificates: &Certificates) -> Said<'static> {
    ("tls-ca", of(&certificates.certificate("ca")))
}

fn shows(certificates: &Certificates, name: &str) -> [Said<'static>; 2] {
    [
        ("tls-cert", of(&certificates.certificate(name))),
        ("tls-key", of(&certificates.key(name))),
    ]
}

#[tokio::test]
async fn a_server_with_a_certificate_of_a_private_authority() -> Result<()> {
    let certificates = Certificates::new()?;
    let scene = Scene::start(&tls(&certificates, "")).await?;
    let said = [trusts(&certificates)];
    scene.serves(&said, By::Flags, By::Variables, &[]).await?;
    let words = ["UnknownIssuer", "--tls-ca"];
    scene.refuses(&[], By::Flags, &words, &[]).await?;
    let stranger = [("tls-ca", of(&certificates.certificate("stranger-ca")))];
    scene.refuses(&stranger, By::File, &words, &[]).await
}

/// The `tls` block of a server that signed its own certificate.
fn self_signed(certificates: &Certificates, name: &str) -> String {
    let (cert, key) = (certificates.certificate(name), certificates.key(name));
    format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}\n")
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_unless_it_is_an_authority_s() -> Result<()> {
    let certificates = Certificates::new()?;
    let said = |name: &str| [("tls-ca", of(&certificates.certificate(name)))];
    let scene = Scene::start(&self_signed(&certificates, "self-signed-ca")).await?;
    let words = ["CA:TRUE", "basicConstraints=critical,CA:FALSE", "--tls-ca"];
    let authority = said("self-signed-ca");
    scene.refuses(&authority, By::Flags, &words, &[]).await?;
    drop(scene);
    let scene = Scene::start(&self_signed(&certificates, "self-signed")).await?;
    let (pelton, flags) = scene.told(&said("self-signed"), By::Flags)?;
    pelton.ok(&line(&["function", "ls"], &flags)).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_without_tls_and_a_websocket_with_it_are_told_apart() -> Result<()> {
    let certificates = Certificates::new()?;
    // A port that was free a moment ago.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = free.local_addr()?.port();
    drop(free);
    let tls = tls(&certificates, "");
    let config = format!("websocket {{ listen: \"127.0.0.1:{port}\", {tls} }}\n");
    let scene = Scene::start(&config).await?;
    let (pelton, _) = scene.told(&[], By::Flags)?;
    let tls = scene.server.url().replace("nats://", "tls://");
    let words = ["does not offer TLS", "nats://", "--server"];
    pelton
        .refused(&["function", "ls", "--server", &tls], &words)
        .await?;
    let ca = of(&certificates.certificate("ca"));
    let words = ["does not offer TLS", "leave out --tls-ca"];
    let plain = scene.server.url();
    let args = ["function", "ls", "--tls-ca", &ca, "--server", &plain];
    pelton.refused(&args, &words).await?;
    let wss = format!("wss://127.0.0.1:{port}");
    let words = ["UnknownIssuer", "--tls-ca"];
    pelton
        .refused(&["function", "ls", "--server", &wss], &words)
        .await?;
    let args = ["function", "ls", "--tls-ca", &ca, "--server", &wss];
    pelton.ok(&args).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_verifies_client_certificates() -> Result<()> {
    let certificates = Certificates::new()?;
    let scene = Scene::start(&tls(&certificates, "verify: true")).await?;
    let ours = trusts(&certificates);
    let mut said = vec![ours.clone()];
    said.extend(shows(&certificates, "client"));
    scene.serves(&said, By::File, By::Flags, &[]).await?;
    let words = ["client certificate", "--tls-cert", "--tls-key"];
    scene.refuses(&said[..1], By::Flags, &words, &[]).await?;
    let mut stranger = vec![ours];
    stranger.extend(shows(&certificates, "stranger"));
    scene.refuses(&stranger, By::File, &words, &[]).await?;
    // What is wrong with the settings alone is said before anything is connected to.
    let (pelton, _) = scene.told(&said[..2], By::Variables)?;
    let words = ["without its key", "--tls-key"];
    pelton.refused(&["run"], &words).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_begins_with_tls() -> Result<()> {
    let certificates = Certificates::new()?;
    let scene = Scene::start(&tls(&certificates, "handshake_first: true")).await?;
    let said = [trusts(&certificates), ("tls-first", "true".to_owned())];
    scene
        .serves(&said, By::Variables, By::Variables, &[])
        .await?;
    let words = ["did not answer", "--tls-first"];
    scene.refuses(&said[..1], By::Flags, &words, &[]).await?;

    let plain = Scene::start(&tls(&certificates, "")).await?;
    let words = ["does not begin with TLS", "leave out --tls-first"];
    plain.refuses(&said, By::File, &words, &[]).await
}

#[tokio::test]
async fn a_server_that_asks_for_user_and_password() -> Result<()> {
    let config = format!("authorization {{ user: node, password: {PASSWORD:?} }}\n");
    let scene = Scene::start(&config).await?;
    let login = |password: &str| {
        [
            ("user", "node".to_owned()),
            ("password", password.to_owned()),
        ]
    };
    let secrets = [PASSWORD, WRONG];
    let said = login(PASSWORD);
    scene
        .serves(&said, By::Flags, By::Variables, &secrets)
        .await?;
    scene.serves_again(&said, By::File, &secrets).await?;
    let words = ["refused the login", "--user and --password"];
    scene.refuses(&[], By::Flags, &words, &secrets).await?;
    for by in [By::Variables, By::File] {
        scene.refuses(&login(WRONG), by, &words, &secrets).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_asks_for_a_token() -> Result<()> {
    let scene = Scene::start(&format!("authorization {{ token: {TOKEN:?} }}\n")).await?;
    let secrets = [TOKEN, WRONG];
    let said = [("token", TOKEN.to_owned())];
    scene
        .serves(&said, By::Variables, By::Variables, &secrets)
        .await?;
    let words = ["refused the login", "token"];
    scene.refuses(&[], By::File, &words, &secrets).await?;
    let wrong = [("token", WRONG.to_owned())];
    scene
        .refuses(&wrong, By::Variables, &words, &secrets)
        .await?;
    // The URL is a place for a login, too.
    let (pelton, _) = scene.told(&[], By::Variables)?;
    let url = scene
        .server
        .url()
        .replace("nats://", &format!("nats://{TOKEN}@"));
    let shown = pelton
        .ok(&["run", "--print-config", "--server", &url])
        .await?;
    hidden(&shown.stdout, &secrets)?;
    let url = url.replace(TOKEN, WRONG);
    let words = ["refused the login", "in its URL is wrong"];
    let output = pelton.refused(&["run", "--server", &url], &words).await?;
    hidden(&output.stderr, &secrets)
}

#[tokio::test]
async fn a_server_that_asks_for_an_nkey() -> Result<()> {
    let ours = nkeys::KeyPair::new_user();
    let config = format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}\n",
        ours.public_key()
    );
    let scene = Scene::start(&config).await?;
    let seed = ours.seed()?;
    let stranger = nkeys::KeyPair::new_user().seed()?;
    let secrets = [seed.as_str(), stranger.as_str()];
    let file = |name: &str, text: &str| scene.project.file(name, text.as_bytes());
    let said = [("nkey", of(&file("node.nk", &seed)?))];
    scene
        .serves(&said, By::Variables, By::Flags, &secrets)
        .await?;
    scene.serves_again(&said, By::File, &secrets).await?;
    scene
        .refuses(&[], By::Flags, &["refused the login", "--nkey"], &secrets)
        .await?;
    let wrong = [("nkey", of(&file("stranger.nk", &stranger)?))];
    let words = ["refused the login", "unknown there", "--nkey"];
    scene
        .refuses(&wrong, By::Variables, &words, &secrets)
        .await?;
    scene.refuses(&wrong, By::File, &words, &secrets).await
}

#[tokio::test]
async fn a_server_that_trusts_an_operator() -> Result<()> {
    let operator = Operator::new();
    let scene = Scene::start(&operator.server_config()?).await?;
    let user = operator.user()?;
    let stranger = Operator::new().user()?;
    let secrets = [
        user.seed.as_str(),
        &user.jwt,
        stranger.seed.as_str(),
        &stranger.jwt,
    ];
    let file = |name: &str, text: &str| scene.project.file(name, text.as_bytes());
    let said = [("creds", of(&file("node.creds", &user.creds())?))];
    scene.serves(&said, By::File, By::Flags, &secrets).await?;
    scene.serves_again(&said, By::Flags, &secrets).await?;
    scene
        .refuses(
            &[],
            By::Variables,
            &["refused the login", "--creds"],
            &secrets,
        )
        .await?;
    let wrong = [("creds", of(&file("stranger.creds", &stranger.creds())?))];
    let words = ["refused the login", "unknown there", "--creds"];
    scene.refuses(&wrong, By::Flags, &words, &secrets).await?;
    scene.refuses(&wrong, By::File, &words, &secrets).await
}

impl Scene {
    /// A node that is told in yet another way serves, too.
    async fn serves_again(&self, said: &[Said<'_>], by: By, secrets: &[&str]) -> Result<()> {
        let (starter, flags) = self.told(said, by)?;
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mut node = Node::start(&starter, &flags)?;
        eventually("the node to serve", || async {
            Ok(node.log()?.contains("serving").then_some(()))
        })
        .await?;
        ensure!(node.terminate(SOON).await?.success(), "{}", node.log()?);
        hidden(&node.log()?, secrets)
    }
}

/// Of `--print-config --json`: value, source and place of a setting.
fn setting(shown: &Value, key: &str) -> Result<[String; 3]> {
    let all = shown["settings"].as_array().context("no settings")?;
    let one = all.iter().find(|one| one["key"] == key);
    let one = one.with_context(|| format!("no {key} in {shown}"))?;
    let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
    Ok([text("value"), text("source"), text("place")])
}

#[tokio::test]
async fn a_flag_counts_before_its_variable_and_a_variable_before_the_file() -> Result<()> {
    let folder = Project::verbatim("")?;
    let path = folder.file(
        "node.toml",
        b"name = \"by-file\"\ndrain = \"1s\"\napps = [\"shop\"]\nmax-memory = \"64MiB\"\n[nats]\nuser = \"node\"\n",
    )?;
    let mut pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    pelton.set_env("PELTON_CONFIG", of(&path));
    pelton.set_env("PELTON_DRAIN", "2s");
    pelton.set_env("PELTON_APPS", "bank,mill");
    pelton.set_env("PELTON_MAX_MEMORY", "128MiB");
    pelton.set_env("NATS_PASSWORD", PASSWORD);
    let shown = pelton
        .json(&["run", "--print-config", "--max-memory", "256MiB"])
        .await?;
    let file = of(&path);
    for (key, value, source, place) in [
        ("name", "by-file", "file", format!("{file}:1")),
        ("drain", "2s", "environment", "PELTON_DRAIN".to_owned()),
        ("apps", "bank,mill", "environment", "PELTON_APPS".to_owned()),
        ("max-memory", "256 MiB", "flag", "--max-memory".to_owned()),
        ("max-instances", "512", "default", String::new()),
        (
            "nats.server",
            "nats://127.0.0.1:1",
            "environment",
            "NATS_URL".to_owned(),
        ),
        ("nats.user", "node", "file", format!("{file}:6")),
        (
            "nats.password",
            "(hidden)",
            "environment",
            "NATS_PASSWORD".to_owned(),
        ),
    ] {
        let expect = [value.to_owned(), source.to_owned(), place];
        ensure!(setting(&shown, key)? == expect, "{key}: {shown:#}");
    }
    ensure!(shown["file"] == Value::String(file));
    Ok(())
}

#[tokio::test]
async fn a_file_with_mistakes_starts_no_node() -> Result<()> {
    let folder = Project::verbatim("")?;
    let path = folder.file(
        "node.toml",
        b"drian = \"1s\"\n[nats]\ncreds = 5\ntls-ca = \"none.pem\"\n",
    )?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    let words = [
        "node.toml:1:1: unknown key `drian`",
        "did you mean `drain`?",
        "node.toml:3:9: `nats.creds` must be a string",
    ];
    for more in [&["run"][..], &["run", "--print-config"]] {
        let mut args = more.to_vec();
        let config = of(&path);
        args.extend(["--config", &config]);
        let output = pelton.refused(&args, &words).await?;
        ensure!(output.stdout.is_empty(), "{output:#?}");
    }
    std::fs::write(&path, "[nats]\ntls-ca = \"none.pem\"\n")?;
    let words = ["node.toml:2:1: `nats.tls-ca`", "none.pem cannot be read"];
    pelton
        .refused(&["run", "--config", &of(&path)], &words)
        .await?;
    let words = ["elsewhere.toml", "does not exist", "PELTON_CONFIG"];
    pelton
        .refused(&["run", "--config", "elsewhere.toml"], &words)
        .await?;
    let mut pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    pelton.set_env("PELTON_DRAIN", "soon");
    let words = ["soon", "--drain", "PELTON_DRAIN", "write a duration"];
    pelton.refused(&["run"], &words).await?;
    Ok(())
}
