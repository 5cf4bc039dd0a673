//! Does a run on its own thread, as a program with a window would. Progress comes through a channel. Lines on
//! stdin stand in for the buttons: "pause", "go on", "finish" and "stop".
//!
//!     cargo run --release --example window -- MODEL_DIR flagged.jsonl RUN_DIR

use std::io::BufRead;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

use aweigh::run::{Place, RunFiles};
use aweigh::train::Metrics;
use aweigh::{Error, Observer, Phase, Result, RunConfig, Watcher, Wish, run};

/// Something for the window to show.
enum Event {
    Phase(Phase, usize),
    Progress(usize),
    SecondsLeft(f64),
    Loss(f64),
    Warning(String),
}

/// The state of the buttons: the wish, and whether the run is paused.
#[derive(Default)]
struct Buttons {
    wish: Mutex<(Wish, bool)>,
    changed: Condvar,
}

impl Buttons {
    fn press(&self, change: impl FnOnce(&mut (Wish, bool))) {
        change(&mut self.wish.lock().expect("not poisoned"));
        self.changed.notify_all();
    }
}

/// The run's watcher: sends events to the window and reads the buttons.
struct Window {
    events: Sender<Event>,
    buttons: Arc<Buttons>,
}

impl Window {
    fn tell(&self, event: Event) {
        // If the window is closed, the event is dropped and the run continues.
        let _ = self.events.send(event);
    }
}

impl Observer for Window {
    fn begin(&mut self, phase: Phase, total: usize) {
        self.tell(Event::Phase(phase, total));
    }

    fn advance(&mut self, items: usize, _tokens: usize) -> Result<()> {
        self.tell(Event::Progress(items));
        Ok(())
    }

    fn left(&mut self, seconds: f64) {
        self.tell(Event::SecondsLeft(seconds));
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.tell(Event::Loss(metrics.get("loss").unwrap_or(f64::NAN)));
        Ok(())
    }

    fn warned(&mut self, text: &str) {
        self.tell(Event::Warning(text.into()));
    }

    /// The run waits here while it is paused.
    fn wish(&mut self) -> Wish {
        let state = self.buttons.wish.lock().expect("not poisoned");
        let state = self.buttons.changed.wait_while(state, |(_, paused)| *paused).expect("not poisoned");
        state.0
    }
}

impl Watcher for Window {}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, output] = arguments.as_slice() else {
        return Err("usage: window MODEL_DIR|tiny DATA.jsonl RUN_DIR".into());
    };
    let mut config = RunConfig::default();
    config.model.model = model.clone();
    config.data.train = data.into();
    config.output.output_dir = output.into();
    let files = RunFiles::open(&config)?;

    let (events, shown) = channel();
    let buttons = Arc::new(Buttons::default());
    let mut window = Window { events, buttons: buttons.clone() };
    let training = std::thread::spawn(move || {
        run(&files, config, Place::New { overwrite: false }, &mut window).map(|finished| finished.summary)
    });
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(|line| line.ok()) {
            match line.trim() {
                "pause" => buttons.press(|state| state.1 = true),
                "go on" => buttons.press(|state| state.1 = false),
                "finish" => buttons.press(|state| *state = (Wish::Finish, false)),
                "stop" => buttons.press(|state| *state = (Wish::Stop, false)),
                other => eprintln!("{other:?}: expected pause, go on, finish or stop"),
            }
        }
    });
    for event in shown {
        match event {
            Event::Phase(phase, total) => println!("{phase}: {total}"),
            Event::Progress(items) if items > 0 => println!("  {items} more"),
            Event::Progress(_) => {}
            Event::SecondsLeft(seconds) => println!("  {seconds:.0} s left"),
            Event::Loss(loss) => println!("  loss {loss:.3}"),
            Event::Warning(text) => println!("warning: {text}"),
        }
    }
    match training.join().expect("the run does not panic") {
        Ok(summary) => println!("{}: {} steps, {output}/adapter", summary.reason_text, summary.steps),
        Err(Error::Interrupted) => println!("stopped; examples/resume.rs resumes {output}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
