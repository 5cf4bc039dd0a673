//! A server of the program, and requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::room::Room;

/// A server that ends with the test.
pub struct Server {
    pub child: Child,
    /// `127.0.0.1:PORT`
    pub address: String,
    pub models: Vec<String>,
}

impl Server {
    /// `aweigh serve` with the built-in model.
    pub fn of_tiny(room: &Room, flags: &[&str]) -> Self {
        Self::start(room, &[&["serve", "--model", "tiny"], flags].concat())
    }

    /// A command that serves.
    pub fn start(room: &Room, line: &[&str]) -> Self {
        Self::with(room, line, &[])
    }

    /// A command that serves, with environment variables.
    pub fn with(room: &Room, line: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = room.process();
        command.args(line).args(["--port", "0", "--json"]).envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            let mut stderr = String::new();
            child.stderr.as_mut().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{line}{stderr}")
        });
        let address = ready["url"].as_str().unwrap().strip_prefix("http://").unwrap();
        let address = address.split('/').next().unwrap().to_owned();
        let models = ready["models"].as_array().into_iter().flatten();
        let models = models.map(|name| name.as_str().unwrap().to_owned()).collect();
        Self { child, address, models }
    }

    /// Sends a request with these header lines; returns the status and the body.
    pub fn raw(&self, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String) {
        let mut stream = self.connect(method, path, headers, body);
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
        let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("{all}")).parse().unwrap();
        let body = match head.to_lowercase().contains("transfer-encoding: chunked") {
            // Lengths in hexadecimal on lines of their own.
            true => unchunked(body),
            false => body.to_owned(),
        };
        (status, body)
    }

    pub fn connect(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let host = format!("Host: {}", self.address);
        let own: Vec<&str> = match headers.iter().any(|line| line.starts_with("Host:")) {
            true => headers.to_vec(),
            false => [&[host.as_str()], headers].concat(),
        };
        let head = own.join("\r\n");
        let length = body.len();
        let text =
            format!("{method} {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\nContent-Length: {length}");
        stream.write_all(format!("{text}\r\n\r\n{body}").as_bytes()).unwrap();
        stream
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.raw("POST", path, &["Content-Type: application/json"], &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text}")))
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.raw("GET", path, &[], "");
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text}")))
    }

    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The events of a streamed answer; the last is `[DONE]`.
    pub fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let (status, text) = self.raw("POST", path, &["Content-Type: application/json"], &body.to_string());
        assert_eq!(status, 200, "{text}");
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"), "{text}");
        data[..data.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A body without the lengths of its chunks.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        whole.push_str(&rest[..length]);
        body = rest[length..].strip_prefix("\r\n").unwrap_or_default();
        if length == 0 {
            break;
        }
    }
    whole
}
