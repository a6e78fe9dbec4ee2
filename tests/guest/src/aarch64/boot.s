// From the monitor's entry (Linux, Documentation/arch/arm64/booting.rst) to Rust, with translation and caches on. The page
// tables are made by the assembler, so nothing is written before the caches are on.

.set DEVICE_BLOCK, 0x0060000000000401   // attribute 0, not executable
.set NORMAL_BLOCK, 0x0000000000000705   // attribute 1, inner shareable
.set TABLE, 3
.set MAIR, 0xff00                       // attribute 0: device memory; 1: write-back
.set TCR, 0x803510                      // 48 bits of address, 4 KiB pages, write-back tables, no upper half
.set SCTLR, 0x30d01805                  // translation and both caches

.section .boot, "ax"
.globl linux_entry
linux_entry:
    b start
    .long 0
    .quad 0                             // as near to a 2 MiB boundary as can be
    .quad __end - linux_entry
    .quad 0xa                           // little endian, 4 KiB pages
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0

start:
    mrs x19, cntvct_el0
    mov x20, x0
    bl turn_on
    ldr x0, =__stack_top
    mov sp, x0
    ldr x0, =__bss_start
    ldr x1, =__bss_end
1:  cmp x0, x1
    b.hs 2f
    str xzr, [x0], #8
    b 1b
2:  mov x0, x20
    mov w1, #1
    mov x2, x19
    bl guest_main

// Where PSCI starts another processor; X0 is its stack.
.globl ap_entry
ap_entry:
    mov x20, x0
    bl turn_on
    mov sp, x20
    bl ap_main

turn_on:
    mov x0, #(3 << 20)                  // floating point and vectors
    msr cpacr_el1, x0
    ldr x0, =vectors
    msr vbar_el1, x0
    ldr x0, =MAIR
    msr mair_el1, x0
    ldr x0, =TCR
    mrs x1, id_aa64mmfr0_el1            // as many physical address bits as there are, up to 48
    and x1, x1, #15
    cmp x1, #5
    mov x2, #5
    csel x1, x1, x2, lo
    orr x0, x0, x1, lsl #32
    msr tcr_el1, x0
    ldr x0, =translation_table
    msr ttbr0_el1, x0
    dsb sy
    isb
    tlbi vmalle1
    dsb sy
    isb
    ldr x0, =SCTLR
    msr sctlr_el1, x0
    isb
    ret
.ltorg

.section .tables, "aw"
.balign 4096
.globl translation_table
translation_table:
    .quad first_table + TABLE
    .fill 511, 8, 0
// 1 GiB each: devices, then what is RAM as far as there is any; mapping.rs makes devices of those in which BARs are.
first_table:
    .quad DEVICE_BLOCK
    .set address, 0x40000000
    .rept 511
    .quad address + NORMAL_BLOCK
    .set address, address + 0x40000000
    .endr

.section .text.vectors, "ax"
.balign 2048
vectors:
.rept 5                                 // with the other stack pointer, which is never in use; then this one's synchronous
    .balign 128
    b exception
.endr
    .balign 128
    b interrupt
.rept 10
    .balign 128
    b exception
.endr

// Counts the interrupt and ends it.
interrupt:
    sub sp, sp, #48
    stp x0, x1, [sp]
    stp x2, x3, [sp, #16]
    str x4, [sp, #32]
    mrs x0, s3_0_c12_c12_0              // ICC_IAR1_EL1
    lsr x1, x0, #13
    cbz x1, 1f
    and x1, x0, #0xff                   // a message: number 8192 and its vector
    b 3f
1:  cmp x0, #1020
    b.hs 5f
    cmp x0, #16
    b.lo 2f
    msr cntv_ctl_el0, xzr               // the timer, which would interrupt on
    ldr x1, =TIMER_VECTOR
    ldr x1, [x1]
    b 3f
2:  add x1, x0, #0x40                   // from a processor
3:  ldr x2, =INTERRUPT_COUNTS
    add x2, x2, x1, lsl #3
4:  ldxr x3, [x2]
    add x3, x3, #1
    stxr w4, x3, [x2]
    cbnz w4, 4b
    msr s3_0_c12_c12_1, x0              // ICC_EOIR1_EL1
    isb
5:  ldp x0, x1, [sp]
    ldp x2, x3, [sp, #16]
    ldr x4, [sp, #32]
    add sp, sp, #48
    eret
.ltorg

// One that is expected leaves its syndrome in ABORT and goes on behind its instruction. Of any other, keeps what is known and goes
// on with its report.
exception:
    stp x0, x1, [sp, #-16]!
    ldr x0, =ABORT
    ldr x1, [x0]
    cbz x1, 1f
    mrs x1, esr_el1
    str x1, [x0]
    mrs x1, elr_el1
    add x1, x1, #4
    msr elr_el1, x1
    ldp x0, x1, [sp], #16
    eret
1:  add sp, sp, #16
    ldr x0, =EXCEPTION
    mrs x1, esr_el1
    mrs x2, elr_el1
    stp x1, x2, [x0]
    mov x1, sp
    mrs x2, far_el1
    stp x1, x2, [x0, #16]
    b exception_main
.ltorg
