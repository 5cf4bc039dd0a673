//! The machine that a figure was measured on.

use aweigh::gpu::instruction_sets;
use serde::Serialize;

/// The processor and the system. How fast a software adapter is depends on the instruction sets.
#[derive(Serialize)]
pub struct Machine {
    /// The processor's name, as it gives it.
    pub processor: String,
    /// Cores that this program may use.
    pub cores: usize,
    /// Those instruction sets of the processor that decide how fast a software adapter is.
    pub instruction_sets: Vec<&'static str>,
    /// The operating system and the architecture.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let cpus = sysinfo::CpuRefreshKind::nothing();
        let system = sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_cpu(cpus));
        let processor = system.cpus().first().map_or("", |cpu| cpu.brand()).trim();
        Self {
            processor: if processor.is_empty() { "unknown".into() } else { processor.into() },
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            instruction_sets: instruction_sets(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processor, cores, instruction_sets, system } = self;
        write!(f, "{processor} ({}), {cores} cores, {system}", instruction_sets.join(", "))
    }
}
