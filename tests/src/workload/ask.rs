//! What a test can have a workload do.

use std::io;
use std::path::{Path, PathBuf};

use super::Workload;
use super::protocol::{
    Executed, Flood, Flooded, Outcome, Raw, Received, Request, Response, Status, Task,
};

impl Workload {
    /// Makes a `GET` request for `path` on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn get(&self, path: &str) -> io::Result<Response> {
        self.request(Request::get(path)).await
    }

    /// Makes a request on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn request(&self, request: Request) -> io::Result<Response> {
        self.ask(None, request).await
    }

    /// Opens a connection and keeps it under a name.
    ///
    /// # Errors
    ///
    /// If nobody listens.
    pub async fn connect(&self, name: &str) -> io::Result<()> {
        let task = Task::Connect {
            name: name.to_owned(),
            socket: self.socket(),
        };
        self.channel.ask(task).await.map(drop)
    }

    /// Closes a named connection.
    ///
    /// # Errors
    ///
    /// If there is none of that name, or it is in use.
    pub async fn close(&self, name: &str) -> io::Result<()> {
        self.channel
            .ask(Task::Close {
                name: name.to_owned(),
            })
            .await
            .map(drop)
    }

    /// Makes a request on a named connection, which stays open.
    ///
    /// # Errors
    ///
    /// If there is no response; the connection is gone then.
    pub async fn send_on(&self, name: &str, request: Request) -> io::Result<Response> {
        self.ask(Some(name.to_owned()), request).await
    }

    /// Writes bytes as they are and reads the answer.
    ///
    /// # Errors
    ///
    /// If it cannot connect, or the connection breaks.
    pub async fn raw(&self, raw: Raw) -> io::Result<Received> {
        match self
            .channel
            .ask(Task::Raw {
                socket: self.socket(),
                raw,
            })
            .await?
        {
            Outcome::Received(received) => Ok(received),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes many requests.
    ///
    /// # Errors
    ///
    /// If the workload is gone.
    pub async fn flood(&self, flood: Flood) -> io::Result<Flooded> {
        match self
            .channel
            .ask(Task::Flood {
                socket: self.socket(),
                flood,
            })
            .await?
        {
            Outcome::Flooded(flooded) => Ok(flooded),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs `curl` on the agent's socket, with further arguments such as the URL `http://localhost/v1/secrets/x`.
    ///
    /// # Errors
    ///
    /// If there is no curl.
    pub async fn curl(&self, arguments: &[&str]) -> io::Result<Executed> {
        let socket = self.spec.socket.display().to_string();
        let arguments = [
            &["--silent", "--show-error", "--unix-socket", &socket],
            arguments,
        ]
        .concat();
        self.execute("curl", &arguments).await
    }

    /// Waits for another workload to [`pass`](Self::pass) a connection to the socket `at`, and keeps it under a name.
    ///
    /// # Errors
    ///
    /// If `at` cannot be bound, or no descriptor comes.
    pub async fn receive(&self, name: &str, at: &Path) -> io::Result<()> {
        let task = Task::Receive {
            name: name.to_owned(),
            at: at.to_owned(),
        };
        self.channel.ask(task).await.map(drop)
    }

    /// Passes a named connection, not yet used, to the workload that waits at the socket `to`.
    ///
    /// # Errors
    ///
    /// If nobody waits there.
    pub async fn pass(&self, name: &str, to: &Path) -> io::Result<()> {
        let task = Task::Pass {
            name: name.to_owned(),
            to: to.to_owned(),
        };
        self.channel.ask(task).await.map(drop)
    }

    /// Watches a named connection, not yet used, with epoll(7) so many times, until the process ends.
    ///
    /// # Errors
    ///
    /// If it may have no more descriptors or watches.
    pub async fn watch(&self, name: &str, times: usize) -> io::Result<()> {
        let task = Task::Watch {
            name: name.to_owned(),
            times,
        };
        self.channel.ask(task).await.map(drop)
    }

    /// What the process sees of itself.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub async fn status(&self) -> io::Result<Status> {
        match self.channel.ask(Task::Status).await? {
            Outcome::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    fn socket(&self) -> PathBuf {
        self.spec.socket.clone()
    }

    async fn ask(&self, connection: Option<String>, request: Request) -> io::Result<Response> {
        match self
            .channel
            .ask(Task::Request {
                socket: self.socket(),
                connection,
                request,
            })
            .await?
        {
            Outcome::Response(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }
}

pub(super) fn unexpected(outcome: &Outcome) -> io::Error {
    io::Error::other(format!("the pod answered something else: {outcome:?}"))
}
