//! A node's HTTP endpoint as Prometheus and a supervisor see it: a plain client, and the numbers of a page.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::node::Node;
use crate::wait::eventually;

/// Longest that an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The lines of its head.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// The numbers of one page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Series, as they stand there, and value.
    series: BTreeMap<String, f64>,
    /// The text.
    pub text: String,
}

impl Node {
    /// Where it shows metrics, as its log says; it must have been started with `--http`.
    ///
    /// # Errors
    /// It does not say.
    pub async fn http(&self) -> Result<SocketAddr> {
        eventually("the node to say where it shows metrics", || async {
            let log = self.log()?;
            let said = log.split("metrics and health at http://").nth(1);
            let address = said.and_then(|said| said.split(": ").next());
            address.map(|one| Ok(one.parse()?)).transpose()
        })
        .await
    }
}

/// Asks once.
///
/// # Errors
/// Nobody is there, or what comes is no HTTP.
pub async fn ask(address: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    let asking = async {
        let mut socket = TcpStream::connect(address).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        // The node closes the connection after its answer.
        let mut text = String::new();
        socket.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    let text = tokio::time::timeout(LIMIT, asking)
        .await
        .with_context(|| format!("{path} was not answered in {LIMIT:?}"))??;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// The page of a node.
///
/// # Errors
/// It shows none.
pub async fn scrape(address: SocketAddr) -> Result<Page> {
    let Answer { status, body, .. } = ask(address, "GET", "/metrics").await?;
    ensure!(status == 200, "{status}: {body}");
    ensure!(body.ends_with("# EOF\n"), "cut off: {body}");
    let mut page = Page {
        series: BTreeMap::new(),
        text: body.clone(),
    };
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let twice = page.series.insert(series.to_owned(), value.parse()?);
        ensure!(twice.is_none(), "{series} stands there twice");
    }
    Ok(page)
}

/// The pages of several nodes.
///
/// # Errors
/// One shows none.
pub async fn scrape_all(addresses: &[SocketAddr]) -> Result<Vec<Page>> {
    let mut pages = Vec::new();
    for address in addresses {
        pages.push(scrape(*address).await?);
    }
    Ok(pages)
}

impl Page {
    /// Every series and its value.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        self.series
            .iter()
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// Values of a metric's series that have all these labels, such as `app="shop"`; none: it has no such series.
    pub fn values(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        let matching = self.series.iter().filter(|(series, _)| {
            let rest = series.strip_prefix(name);
            rest.is_some_and(|rest| {
                (rest.is_empty() || rest.starts_with('{'))
                    && labels.iter().all(|label| rest.contains(label))
            })
        });
        matching.map(|(_, value)| *value).collect()
    }

    /// Their sum.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.values(name, labels).iter().sum()
    }
}

/// The sum over several nodes, as `sum(…)` of Prometheus.
pub fn sum(pages: &[Page], name: &str, labels: &[&str]) -> f64 {
    pages.iter().map(|page| page.sum(name, labels)).sum()
}
