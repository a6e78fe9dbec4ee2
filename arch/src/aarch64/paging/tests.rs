use super::*;

/// TCR_EL1 fields.
const TG0_4K: u64 = 0;
const TG0_64K: u64 = 1 << 14;
const TG0_16K: u64 = 2 << 14;
const TG1_4K: u64 = 2 << 30;
const TG1_64K: u64 = 3 << 30;
const TG1_16K: u64 = 1 << 30;
const IPS_IS_52: u64 = IPS_52 << 32;
const TBI0: u64 = 1 << 37;
const TBI1: u64 = 1 << 38;
const EPD1: u64 = 1 << 23;

/// Of an entry that maps a page or points to a table, with the access flag, attributes and no-execute bits.
const PAGE: u64 = 3 << 53 | 1 << 10 | 0b11;
/// Of an entry that maps a block.
const BLOCK: u64 = 3 << 53 | 1 << 10 | 0b01;

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn put(ram: &GuestRam, table: u64, index: u64, entry: u64) {
    ram.write_obj(entry, GuestAddress(table + index * 8)).unwrap();
}

/// Both halves of `bits`, with the same table.
fn state(bits: u64, tcr: u64) -> State {
    let size = 64 - bits;
    // An ASID, and the bit that says that the translations are those of other CPUs too.
    State { sctlr: SCTLR_M, tcr: tcr | size | size << 16, ttbr: [0x77 << 48 | 0x1_0001; 2] }
}

#[test]
fn without_translation_addresses_are_physical() {
    assert_eq!(translate(&ram(), &State::default(), 0x1234), Some((0x1234, u64::MAX - 0x1234)));
    assert_eq!(kernel_half(&State::default()), None);
    assert_eq!(mappings(&ram(), &State::default(), 0, 4, 4), []);
}

#[test]
fn granules_of_4_kib_have_four_levels_and_blocks() {
    let ram = ram();
    let state = state(48, TG0_4K | TG1_4K);
    let address = 0xffff_8123_4567_89ab_u64;
    let index = |level: u32| address >> (12 + 9 * level) & 0x1ff;
    put(&ram, 0x1_0000, index(3), 0x2_0003);
    put(&ram, 0x2_0000, index(2), 0x3_0003);
    put(&ram, 0x3_0000, index(1), 0x4_0003);
    put(&ram, 0x4_0000, index(0), 0x1_2345_6000 | PAGE);
    assert_eq!(translate(&ram, &state, address), Some((0x1_2345_69ab, 0x1000 - 0x9ab)));
    // The lower half has the same table here.
    assert_eq!(translate(&ram, &state, address & (u64::MAX >> 16)), Some((0x1_2345_69ab, 0x1000 - 0x9ab)));
    put(&ram, 0x3_0000, index(1), 0x2_0000_0000 | BLOCK);
    let offset = address & 0x1f_ffff;
    assert_eq!(translate(&ram, &state, address), Some((0x2_0000_0000 + offset, 0x20_0000 - offset)));
    put(&ram, 0x2_0000, index(2), 0x40_0000_0000 | BLOCK);
    let offset = address & 0x3fff_ffff;
    assert_eq!(translate(&ram, &state, address), Some((0x40_0000_0000 + offset, 0x4000_0000 - offset)));
    put(&ram, 0x1_0000, index(3), BLOCK);
    assert_eq!(translate(&ram, &state, address), None, "there are no blocks of 512 GiB");
    assert_eq!(translate(&ram, &state, address ^ 1 << 40), None, "nothing is mapped");
    assert_eq!(translate(&ram, &state, address ^ 1 << 50), None, "in neither half");
    put(&ram, 0x2_0000, index(2), 0x3_0003);
    put(&ram, 0x3_0000, index(1), 0x4_0003);
    put(&ram, 0x1_0000, index(3), 0x2_0003);
    put(&ram, 0x4_0000, index(0), 0x1_2345_6000 | BLOCK);
    assert_eq!(translate(&ram, &state, address), None, "there are no blocks of the last level");
}

#[test]
fn a_first_table_may_be_small() {
    let ram = ram();
    // 39 bits: three levels. 42 bits: four levels, of which the first has eight entries in 64 bytes.
    let mut three = state(39, TG0_4K | TG1_4K);
    put(&ram, 0x1_0000, 511, 0x4000_0000 | BLOCK);
    assert_eq!(translate(&ram, &three, 0xffff_ffff_ffff_fff0), Some((0x7fff_fff0, 0x10)));
    three.ttbr[1] = 0x1_0ff8 & !0xfff;
    assert_eq!(translate(&ram, &three, 0xffff_ffbf_ffff_ffff), None, "bit 38 belongs to the half");
    let mut four = state(42, TG0_4K | TG1_4K);
    four.ttbr[0] = 0x2_0040 | 1;
    put(&ram, 0x2_0040, 5, 0x1_0003);
    assert_eq!(translate(&ram, &four, 5 << 39 | 511 << 30 | 0x123).map(|found| found.0), Some(0x4000_0123));
    assert_eq!(translate(&ram, &four, 1 << 42 | 5 << 39 | 511 << 30), None, "more bits than are translated");
    // 25 bits: two levels, of which the first has 16 entries.
    let two = state(25, TG0_4K | TG1_4K);
    put(&ram, 0x1_0000, 3, 0x80_0000 | BLOCK);
    assert_eq!(translate(&ram, &two, 3 << 21 | 5).map(|found| found.0), Some(0x80_0005));
}

#[test]
fn granules_of_16_and_64_kib() {
    let ram = ram();
    let state_16 = state(47, TG0_16K | TG1_16K);
    // Three levels of eleven bits, and a page of 14.
    let address = 0xffff_9234_5678_9abc_u64 | 1 << 47;
    put(&ram, 0x1_0000, address >> 36 & 0x7ff, 0x4_0003);
    put(&ram, 0x4_0000, address >> 25 & 0x7ff, 0x8_0003);
    put(&ram, 0x8_0000, address >> 14 & 0x7ff, 0x5_c000 | PAGE);
    assert_eq!(translate(&ram, &state_16, address), Some((0x5_c000 + 0x1abc, 0x4000 - 0x1abc)));
    put(&ram, 0x4_0000, address >> 25 & 0x7ff, 0x1200_0000 | BLOCK);
    assert_eq!(translate(&ram, &state_16, address).unwrap().0, 0x1200_0000 + (address & 0x1ff_ffff));
    put(&ram, 0x1_0000, address >> 36 & 0x7ff, BLOCK);
    assert_eq!(translate(&ram, &state_16, address), None, "there are no blocks of 64 GiB");

    let state_64 = state(48, TG0_64K | TG1_64K);
    let address = 0xffff_0000_1234_5678_u64;
    put(&ram, 0x1_0000, 0, 0x4_0003);
    put(&ram, 0x4_0000, 0, 0x5_0003);
    put(&ram, 0x5_0000, 0x1234, 0x7_0000 | PAGE);
    assert_eq!(translate(&ram, &state_64, address), Some((0x7_5678, 0x1_0000 - 0x5678)));
    put(&ram, 0x4_0000, 0, 0x6000_0000 | BLOCK);
    assert_eq!(translate(&ram, &state_64, address), Some((0x7234_5678, 0x2000_0000 - 0x1234_5678)));
    put(&ram, 0x1_0000, 0, BLOCK);
    assert_eq!(translate(&ram, &state_64, address), None, "blocks of 4 TiB are of large physical addresses");
}

#[test]
fn addresses_of_52_bits() {
    let ram = ram();
    // 64 KiB: bits 48 to 51 are in bits 12 to 15, and of the table's address in bits 2 to 5.
    let state_64 = state(52, TG0_64K | TG1_64K | IPS_IS_52);
    let address = 0xfff0_0000_0000_1234_u64;
    put(&ram, 0x1_0000, 0, 0x4_0003);
    put(&ram, 0x4_0000, 0, 0x5_0003);
    put(&ram, 0x5_0000, 0, 0x1234_5678_0000 | 0xa000 | PAGE);
    assert_eq!(translate(&ram, &state_64, address), Some((0xa_1234_5678_1234, 0x1_0000 - 0x1234)));
    put(&ram, 0x1_0000, 0, BLOCK | 0x3000);
    assert_eq!(translate(&ram, &state_64, address).unwrap().0, 0x3_0000_0000_1234, "a block of 4 TiB");
    let mut far = state_64;
    far.ttbr[1] |= 1 << 2;
    assert_eq!(translate(&ram, &far, address), None, "the table is not in memory");

    // 4 KiB: five levels, and bits 50 and 51 are in bits 8 and 9.
    let state_4 = state(52, TG0_4K | TG1_4K | TCR_DS);
    let ram = self::ram();
    let address = 0xfff5_8000_0000_2345_u64;
    put(&ram, 0x1_0000, 5, 0x2_0003);
    put(&ram, 0x2_0000, address >> 39 & 0x1ff, 0x3_0003);
    put(&ram, 0x3_0000, 0, 0x4_0003);
    put(&ram, 0x4_0000, 0, 0x5_0003);
    put(&ram, 0x5_0000, 2, 0x3_0000_0000_6000 | 0x300 | PAGE & !(0b11 << 8));
    assert_eq!(translate(&ram, &state_4, address).unwrap().0, 0xf_0000_0000_6345);
    put(&ram, 0x2_0000, address >> 39 & 0x1ff, BLOCK);
    assert_eq!(translate(&ram, &state_4, address).unwrap().0, 0x2345, "a block of 512 GiB");
    assert_eq!(translate(&ram, &state(52, TG0_4K | TG1_4K), address), None, "too large without LPA2");

    // 16 KiB: the same entries, and blocks of 64 GiB.
    let state_16 = state(52, TG0_16K | TG1_16K | TCR_DS);
    put(&ram, 0x1_0000, 1, 0x4_0003);
    put(&ram, 0x4_0000, 0, BLOCK | 0x200);
    assert_eq!(translate(&ram, &state_16, 1 << 47 | 0x77).unwrap().0, 0x8_0000_0000_0077);
}

#[test]
fn a_half_may_ignore_the_top_byte_or_have_no_tables() {
    let ram = ram();
    put(&ram, 0x1_0000, 0, 0x2_0003);
    put(&ram, 0x2_0000, 1, 0x4000_0000 | BLOCK);
    let tagged = 0xab00_0000_4000_0010;
    assert_eq!(translate(&ram, &state(48, TG0_4K | TG1_4K), tagged), None);
    assert_eq!(translate(&ram, &state(48, TG0_4K | TG1_4K | TBI1), tagged), None, "it is of the lower half");
    assert_eq!(translate(&ram, &state(48, TG0_4K | TG1_4K | TBI0), tagged).unwrap().0, 0x4000_0010);
    let upper = 0x12ff_0000_4000_0010;
    assert_eq!(translate(&ram, &state(48, TG0_4K | TG1_4K | TBI1), upper).unwrap().0, 0x4000_0010);
    let without = state(48, TG0_4K | TG1_4K | EPD1);
    assert_eq!(translate(&ram, &without, 0xffff_0000_4000_0010), None);
    assert_eq!(translate(&ram, &without, 0x4000_0010).unwrap().0, 0x4000_0010);
    assert_eq!(kernel_half(&without), None);
    assert_eq!(kernel_half(&state(48, TG0_4K | TG1_4K)), Some(0xffff << 48));
}

#[test]
fn tables_of_a_big_endian_kernel() {
    let ram = ram();
    let mut big = state(39, TG0_4K | TG1_4K);
    big.sctlr |= SCTLR_EE;
    put(&ram, 0x1_0000, 1, (0x4000_0000 | BLOCK).swap_bytes());
    assert_eq!(translate(&ram, &big, 0x4000_1111).unwrap().0, 0x4000_1111);
}

#[test]
fn mappings_are_joined_and_bounded() {
    let ram = ram();
    let state = state(48, TG0_4K | TG1_4K);
    put(&ram, 0x1_0000, 0, 0x2_0003);
    put(&ram, 0x2_0000, 1, 0x3_0003);
    for index in 0..8 {
        put(&ram, 0x3_0000, index, (0x4000_0000 + index * 0x20_0000) | BLOCK);
    }
    put(&ram, 0x3_0000, 10, BLOCK);
    // A table that is its own entry maps a lot.
    put(&ram, 0x1_0000, 256, 0x1_0003);
    let start = kernel_half(&state).unwrap();
    assert_eq!(
        mappings(&ram, &state, start, 10, 1 << 11),
        [
            Mapping { linear: start + (1 << 30), physical: 0x4000_0000, size: 16 << 20 },
            Mapping { linear: start + (1 << 30) + (20 << 20), physical: 0, size: 2 << 20 },
        ]
    );
    assert!(mappings(&ram, &state, start + (256 << 39), 4, 1 << 14).len() <= 4);
}

/// Whatever a guest has in its registers and tables: each question ends, and what is found is in an address's 52 bits.
#[test]
fn hostile_registers_and_tables_lead_nowhere_in_a_bounded_time() {
    let ram = ram();
    let mut seed = 1_u64;
    let mut random = || {
        // Knuth's linear congruential generator; its upper half is good enough.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.rotate_left(32)
    };
    for at in (0..1 << 20).step_by(8) {
        // Half of the entries lead to other tables.
        let entry = random();
        let entry = if entry & 4 == 0 { entry & 0xf_f000 | 0b11 } else { entry };
        ram.write_obj(entry, GuestAddress(at)).unwrap();
    }
    for _ in 0..20_000 {
        let state = State { sctlr: random() | SCTLR_M, tcr: random(), ttbr: [random() & 0xf_ffff, random()] };
        let address = random();
        let address = if address & 1 == 0 { address >> 20 } else { address | u64::MAX << 44 };
        if let Some((place, size)) = translate(&ram, &state, address) {
            assert!(place >> 52 == 0 && size > 0 && size <= 1 << 48, "{state:x?} {address:#x}");
        }
        assert!(mappings(&ram, &state, address, 3, 50).len() <= 3);
    }
}
