//! The page "A cluster in ten minutes": its commands and files make a cluster, as they are on the page.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use portreeve_tests::broker::Log;
use portreeve_tests::{Broker, Host, binaries, etcd, eventually, isolated_cluster, lan};
use serde_json::Value;

const PAGE: &str = include_str!("../../../deploy/docs/cluster.md");
const NODES: [&str; 3] = ["mx1", "mx2", "mx3"];
/// The ids of the user of the coordinator, the group of the control sockets, and the group of etcd.
const IDS: [u32; 3] = [2101, 2102, 2103];

/// The first block of a language after some text.
fn block(after: &str, language: &str) -> &'static str {
    let rest = &PAGE[PAGE.find(after).unwrap()..];
    let rest = rest.split_once(&format!("\n```{language}\n")).unwrap().1;
    rest.split_once("\n```").unwrap().0
}

/// A host of the page: its files are in a directory of their own.
struct Node {
    name: &'static str,
    root: PathBuf,
    etcd: Child,
    etcd_log: Log,
    broker: Option<Broker>,
    coordinator: Option<Child>,
}

/// The text of the page for another host, with the paths of the test.
fn adapt(text: &str, name: &str, root: &Path) -> String {
    let root = root.display().to_string();
    let paths = text.replace("/run/", &format!("{root}/run/")).replace("/etc/", &format!("{root}/etc/"));
    paths.replace("$(hostname)", name)
}

fn run(script: &str, directory: &Path) {
    let output = Command::new("sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The file of etcd on a host: the name and the address are replaced except where all members are.
fn etcd_variables(name: &str, address: &str, root: &Path) -> Vec<(String, String)> {
    let line = |line: &str| match line.starts_with("ETCD_INITIAL_CLUSTER=") {
        true => line.to_owned(),
        false => adapt(&line.replace("mx1", name).replace("10.1.1.201", address), name, root),
    };
    let lines = block("## 3. etcd", "ini").lines().map(line);
    lines
        .map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
        .collect()
}

fn start_etcd(host: &Host, name: &'static str, address: &str, root: &Path) -> (Child, Log) {
    let mut command = Command::new(etcd::program(host, "etcd-server", "etcd"));
    command.envs(etcd_variables(name, address, root)).env("ETCD_DATA_DIR", root.join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = lan::in_host(name, || command.spawn().unwrap());
    let log = Log::default();
    log.follow(child.stdout.take().unwrap());
    log.follow(child.stderr.take().unwrap());
    (child, log)
}

impl Node {
    fn start(host: &Host, name: &'static str, address: &str, certificates: &Path) -> Self {
        let root = host.path(name);
        fs::create_dir_all(root.join("run/portreeve")).unwrap();
        fs::create_dir_all(root.join("run/portreeve-coordinator")).unwrap();
        chown(root.join("run/portreeve-coordinator"), Some(IDS[0]), Some(IDS[1])).unwrap();
        run(&adapt(block("There, for the user", "sh"), name, &root), certificates);
        let (etcd, etcd_log) = start_etcd(host, name, address, &root);
        Self { name, root, etcd, etcd_log, broker: None, coordinator: None }
    }

    fn start_portreeve(&mut self, host: &Host) {
        let text =
            block("## 4. The broker", "text").replace("nodename = mx1", &format!("nodename = {}", self.name));
        let text = text.replace("tls/mx1.", &format!("tls/{}.", self.name));
        let config = self.root.join("etc/portreeve/portreeve.conf");
        fs::write(&config, adapt(&text, self.name, &self.root)).unwrap();
        let mut command = Command::new(host.binary(binaries::BROKER));
        command
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let broker = lan::in_host(self.name, || Broker::launch_notifying(&self.root.join("notify"), command));
        self.broker = Some(broker);
        let mut command = Command::new(host.binary(binaries::COORDINATOR));
        command.arg("--socket").arg(self.root.join("run/portreeve/broker.sock"));
        command.arg("--control").arg(self.control()).uid(IDS[0]).gid(IDS[1]).stdin(Stdio::null());
        self.coordinator = Some(lan::in_host(self.name, || command.spawn().unwrap()));
    }

    fn control(&self) -> PathBuf {
        self.root.join("run/portreeve-coordinator/control.sock")
    }

    /// The output of a command of the page, once it succeeds.
    fn portreeve(&self, host: &Host, words: &str) -> String {
        let mut command = Command::new(host.binary(binaries::CLIENT));
        command.args(words.strip_prefix("portreeve ").unwrap().split(' '));
        command.env("PORTREEVE_COORDINATOR_SOCKET", self.control()).env_remove("COLUMNS");
        eventually(words, || {
            let output = command.output().unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        })
    }

    fn owner(&self, host: &Host, address: &str) -> Option<String> {
        let status: Value =
            serde_json::from_str(&self.portreeve(host, "portreeve cluster status --json")).unwrap();
        let row = status["addresses"].as_array().unwrap().iter().find(|row| row["address"] == address)?;
        let is_there = row["step"] == "held" || row["owner"] != self.name;
        row["owner"].as_str().filter(|_| is_there).map(str::to_owned)
    }

    /// Ends all its processes at once, as if it were switched off.
    fn switch_off(&mut self) {
        for child in [Some(&mut self.etcd), self.coordinator.as_mut()].into_iter().flatten() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.broker = None;
        lan::ip(&format!("-n {} link set eth1 down", self.name));
    }
}

/// The lines without numbers and the width of columns.
fn shape(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let words =
            line.split_whitespace().map(|word| match word.starts_with(|c: char| c.is_ascii_digit()) {
                true => "#",
                false => word,
            });
        words.collect::<Vec<_>>().join(" ")
    };
    text.lines().map(line).filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_commands_of_the_page_make_a_cluster_that_survives_a_host() {
    isolated_cluster(|host| {
        host.add_user("portreeve-coordinator", IDS[0]);
        host.add_group("portreeve", IDS[1]);
        host.add_group("etcd", IDS[2]);
        lan::create(&NODES);
        let certificates = host.path("certificates");
        fs::create_dir(&certificates).unwrap();
        run(block("## 2. Certificates", "sh"), &certificates);
        let addresses = ["10.1.1.201", "10.1.1.202", "10.1.1.203"];
        let started = NODES
            .iter()
            .zip(addresses)
            .map(|(name, address)| Node::start(host, name, address, &certificates));
        let mut nodes: Vec<Node> = started.collect();
        for node in &nodes {
            node.etcd_log.wait_for(&["ready to serve client requests"]);
        }
        nodes.iter_mut().for_each(|node| node.start_portreeve(host));

        for (address, owner) in [("10.1.1.101", "mx1"), ("10.1.1.102", "mx2")] {
            for node in &nodes {
                eventually("the preferred node", || (node.owner(host, address)? == owner).then_some(()));
            }
        }
        let expected = shape(block("portreeve cluster status\n", "text"));
        let mut status = String::new();
        let found = (0..100).any(|_| {
            status = nodes[0].portreeve(host, "portreeve cluster status");
            std::thread::sleep(std::time::Duration::from_millis(100));
            shape(&status) == expected
        });
        assert!(found, "{status}");

        let [mx1, _, mx3] = &mut nodes[..] else { unreachable!() };
        mx3.portreeve(host, "portreeve cluster drain mx1");
        eventually("the drained node to give its address away", || {
            (mx3.owner(host, "10.1.1.101")? != "mx1").then_some(())
        });
        mx3.portreeve(host, "portreeve cluster undrain mx1");
        eventually("the address to return", || (mx3.owner(host, "10.1.1.101")? == "mx1").then_some(()));
        mx1.switch_off();
        eventually("another node", || (mx3.owner(host, "10.1.1.101")? != "mx1").then_some(()));
    });
}
