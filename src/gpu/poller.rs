//! Waits for the device and delivers its callbacks.

#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::Poller;
#[cfg(target_arch = "wasm32")]
pub(super) use web::Poller;

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::sync::mpsc;
    use std::thread::JoinHandle;

    /// A thread that waits for the device, so that callers need not block: readbacks are plain futures.
    ///
    /// It waits for one submit after the other. If it waited for all of them at once, the results of the
    /// first submit would be read only when the last one is finished, and the host would have nothing to
    /// record until then.
    pub(crate) struct Poller {
        requests: Option<mpsc::Sender<Option<wgpu::SubmissionIndex>>>,
        thread: Option<JoinHandle<()>>,
    }

    impl Poller {
        pub fn new(device: wgpu::Device) -> Self {
            let (sender, receiver) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                for submission_index in receiver {
                    if let Err(error) = device.poll(wgpu::PollType::Wait { submission_index, timeout: None })
                    {
                        log::warn!("waiting for the device: {error}");
                    }
                }
            });
            Self { requests: Some(sender), thread: Some(thread) }
        }

        /// Makes the thread wait for a submit, or for all submits so far.
        pub fn wait_for(&self, submit: Option<wgpu::SubmissionIndex>) {
            if let Some(requests) = &self.requests {
                let _ = requests.send(submit);
            }
        }
    }

    impl Drop for Poller {
        /// Waits for the thread, which holds the device too. Otherwise it could still be closing the device
        /// while the process ends, and drivers crash when their libraries are unloaded first (llvmpipe did,
        /// in one run of twenty).
        fn drop(&mut self) {
            self.requests = None;
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod web {
    /// No thread is needed: the browser delivers callbacks.
    pub(crate) struct Poller;

    impl Poller {
        pub fn new(_: wgpu::Device) -> Self {
            Self
        }

        pub fn wait_for(&self, _: Option<wgpu::SubmissionIndex>) {}
    }
}
