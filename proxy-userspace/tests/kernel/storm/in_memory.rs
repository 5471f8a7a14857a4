//! The edits on tables in memory: every question is asked after every single write.

use super::*;

/// Makes the same edits on tables in memory; returns the number of writes. After each write every
/// question is asked and compared with the states before and after the edit, also by packets that
/// see the tables first as they were some writes ago. Grace periods end now and then.
pub fn without_kernel(dice: &mut Dice, edits: usize) -> Result<usize> {
    let (mut snapshot, mut compiler, mut tables) = (
        snapshot(),
        PolicyCompiler::default(),
        PolicyTables::default(),
    );
    let (mut early, mut late, mut between) =
        (Memory4::default(), Memory4::default(), VecDeque::new());
    let (mut touched, mut count, mut until_rest) = (Touched::everything(), 0, 0);
    let mut states = Vec::new();
    for edit in 0..edits {
        let delta = compiler.compile(&snapshot, &touched);
        let writes = tables.place(compiler.policies(), &delta);
        states.push(verdicts(&compiler));
        let pod_id = tables
            .pod_id(&ObjectName::new("shop", "subject"))
            .context("find the pod's pod_id")?;
        let lag = dice.below(3 * writes.len().max(1));
        for write in writes {
            late.make(&write);
            between.push_back((edit, write));
            while between.len() > lag {
                between
                    .pop_front()
                    .iter()
                    .for_each(|(_, write)| early.make(write));
            }
            // The first writes come before the pod.
            if edit > 0 {
                let since = between.front().map_or(edit, |(edit, _)| *edit) - 1;
                late.holds(pod_id, &states[edit - 1..])
                    .with_context(|| format!("edit {edit}"))?;
                straddles(dice, [&early, &late], pod_id, &states[since..])
                    .with_context(|| format!("edit {edit}"))?;
            }
            count += 1;
        }
        if until_rest == 0 {
            // A grace period: no packet is left that began before it.
            between.drain(..).for_each(|(_, write)| early.make(&write));
            tables.rest().iter().for_each(|write| {
                [&mut early, &mut late]
                    .into_iter()
                    .for_each(|memory| memory.make(write))
            });
            until_rest = dice.below(150);
        }
        until_rest = until_rest.saturating_sub(1);
        let update = edit_of(dice);
        touched = Touched::default();
        touched.record(&update);
        _ = snapshot.state.apply(update);
    }
    Ok(count)
}

/// Tables of IPv4 in memory.
#[derive(Default)]
struct Memory4(Memory<V4>, Memory<V6>);

impl Memory4 {
    fn make(&mut self, write: &PolicyWrite) {
        policy_tables::write(write, &mut self.0, &mut self.1);
    }

    /// Asserts that every question is answered as in one of these states.
    fn holds(&self, pod_id: u32, states: &[Verdicts]) -> Result<()> {
        for (bit, question) in questions().into_iter().enumerate() {
            question.check(&self.0, pod_id, bit, states)?;
        }
        Ok(())
    }
}

/// A packet finds the tables as they were until a random lookup, and as they are from there on.
fn straddles(
    dice: &mut Dice,
    [early, late]: [&Memory4; 2],
    pod_id: u32,
    states: &[Verdicts],
) -> Result<()> {
    let all = questions();
    let bit = dice.below(all.len());
    let tables = Straddled {
        early: &early.0,
        late: &late.0,
        left: Cell::new(dice.below(8)),
    };
    all[bit]
        .check(&tables, pod_id, bit, states)
        .context("a packet that is under way")
}

struct Straddled<'a> {
    early: &'a Memory<V4>,
    late: &'a Memory<V4>,
    left: Cell<usize>,
}

impl Straddled<'_> {
    fn met(&self) -> &Memory<V4> {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left > 0 { self.early } else { self.late }
    }
}

impl proxy_ebpf::Verdicts<V4> for Straddled<'_> {
    type Ports<'a>
        = &'a PortSet
    where
        Self: 'a;

    fn rows(&self, pod_id: u32) -> PodRows {
        self.met().rows(pod_id)
    }
    fn word(&self, node: u32, byte: u8) -> Word {
        self.met().word(node, byte)
    }
    fn exact_class(&self, addr: &Addr4) -> Option<u32> {
        self.met().exact_class(addr)
    }
    fn prefix_class(&self, addr: &Addr4) -> u32 {
        self.met().prefix_class(addr)
    }
    fn verdict(&self, chunk: u32, class: u32) -> u32 {
        self.met().verdict(chunk, class)
    }
    fn hashed_verdict(&self, key: &VerdictKey) -> u32 {
        self.met().hashed_verdict(key)
    }
    fn ports(&self, set: u32) -> Option<&PortSet> {
        self.met().ports(set)
    }
}
