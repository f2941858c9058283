"""What every method makes of an input, from its paper's equation: float64, loops, and nothing of ours imported.

A change of a linear map is a function of one input: name(x, W, b, its tensors, its numbers). What it is merged into is the
matrix of that function: see `merged`.
"""

import math

import numpy as np


def product(M, x):
    """M x."""
    out = np.zeros(len(M))
    for i in range(len(M)):
        for j in range(len(x)):
            out[i] += M[i][j] * x[j]
    return out


def matrix_product(M, N):
    """M N, column by column."""
    return np.stack([product(M, column) for column in np.asarray(N).T], 1)


def base(x, W, b):
    """W x + b; b may be None."""
    return product(W, x) + (0 if b is None else b)


def lora(x, W, b, A, B, scaling):
    """W x + b + scaling B A x."""
    return base(x, W, b) + scaling * product(B, product(A, x))


def dora(x, W, b, A, B, m, scaling):
    """m / |W + scaling B A| (W + scaling B A) x + b, |.| by rows."""
    out = np.zeros(len(W))
    for i in range(len(W)):
        row = W[i] + scaling * sum(B[i, k] * A[k] for k in range(len(A)))
        length = math.sqrt(sum(number**2 for number in row))
        out[i] = m[i] / length * sum(row[j] * x[j] for j in range(len(x))) + (0 if b is None else b[i])
    return out


def ia3_outputs(x, W, b, factors):
    """l * (W x + b)."""
    return factors * base(x, W, b)


def ia3_inputs(x, W, b, factors):
    """W (l * x) + b."""
    return base(factors * x, W, b)


def vera(x, W, b, A, B, d, lambda_b):
    """W x + b + lambda_b * (B (d * (A x)))."""
    return base(x, W, b) + lambda_b * product(B, d * product(A, x))


def loha(x, W, b, A1, B1, A2, B2, scaling):
    """W x + b + scaling ((A1 B1) * (A2 B2)) x."""
    return base(x, W, b) + scaling * product(matrix_product(A1, B1) * matrix_product(A2, B2), x)


def kronecker(w1, w2):
    """w1 (x) w2: every number of w1 times the whole of w2."""
    out = np.zeros((w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1]))
    for i in range(w1.shape[0]):
        for j in range(w1.shape[1]):
            for k in range(w2.shape[0]):
                for n in range(w2.shape[1]):
                    out[i * w2.shape[0] + k, j * w2.shape[1] + n] = w1[i, j] * w2[k, n]
    return out


def lokr(x, W, b, w1, w2, scaling):
    """W x + b + scaling (w1 (x) w2) x; a factor may be a pair whose product it is."""
    w1, w2 = (matrix_product(*factor) if isinstance(factor, tuple) else factor for factor in (w1, w2))
    return base(x, W, b) + scaling * product(kronecker(w1, w2), x)


def lokr_sides(size, factor):
    """The two numbers whose product is `size`: `factor` and the rest; or else the first as large as the root and it allow."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    best = 1
    for number in range(1, size + 1):
        if size % number == 0 and number * number <= size and (factor < 0 or number <= factor):
            best = number
    return best, size // best


def skew(numbers, size):
    """Q = -Q^T from the numbers above its diagonal, row by row."""
    Q, left = np.zeros((size, size)), iter(numbers)
    for i in range(size):
        for j in range(i + 1, size):
            Q[i, j] = next(left)
            Q[j, i] = -Q[i, j]
    return Q


def cayley(Q):
    """(I - Q)(I + Q)^-1."""
    one = np.eye(len(Q))
    return matrix_product(one - Q, np.linalg.inv(one + Q))


def neumann(Q, terms):
    """I + 2 Q + 2 Q^2 + ... + Q^last; I alone for one term, I + 2 Q for two, and three count as four."""
    powers = [np.eye(len(Q))]
    while len(powers) < max(terms, 4):
        powers.append(matrix_product(powers[-1], Q))
    if terms < 3:
        return powers[0] + (terms - 1) * 2 * powers[1]
    last = max(terms, 4) - 1
    return powers[0] + 2 * sum(powers[1:last]) + powers[last]


def oft(x, W, b, blocks):
    """W R^T x + b, the blocks along the diagonal of R."""
    turned, size = np.zeros(len(x)), len(blocks[0])
    for number, block in enumerate(blocks):
        for i in range(size):
            for j in range(size):
                turned[number * size + i] += block[j, i] * x[number * size + j]
    return base(turned, W, b)


def adalora(x, W, b, A, B, E, scaling):
    """W x + b + scaling B (E * (A x))."""
    return base(x, W, b) + scaling * product(B, E * product(A, x))


def adalora_penalty(pairs, weight):
    """weight times the mean of |A A^T - I| and |B^T B - I| over all (A, B)."""
    lengths = []
    for A, B in pairs:
        for rows in (A, B.T):
            total = 0.0
            for i in range(len(rows)):
                for j in range(len(rows)):
                    total += (sum(rows[i] * rows[j]) - (i == j)) ** 2
            lengths.append(math.sqrt(total))
    return weight * sum(lengths) / len(lengths)


def adalora_budget(t, tinit, tfinal, last, initial, target):
    """target + (initial - target) (1 - (t - tinit) / (last - tinit - tfinal))^3 between tinit and last - tfinal."""
    if t < tinit:
        return initial
    if t >= last - tfinal:
        return target
    return round(target + (initial - target) * (1 - (t - tinit) / (last - tinit - tfinal)) ** 3)


def adalora_kept(steps, tinit, tfinal, init_r, target_r, beta1, beta2):
    """Which triplets stay after each step, as booleans (layers, init_r).

    steps[t][layer] maps A, B and E to (w, g), the tensor and its gradient after that step.
    """
    means, spreads, kept = {}, {}, []
    for t, layers in enumerate(steps):
        matters = np.zeros((len(layers), init_r))
        for number, tensors in enumerate(layers):
            share = {}
            for name, (w, g) in tensors.items():
                share[name] = np.zeros_like(w)
                for place in np.ndindex(*w.shape):
                    key, now = (number, name, place), abs(w[place] * g[place])
                    means[key] = beta1 * means.get(key, 0) + (1 - beta1) * now
                    spreads[key] = beta2 * spreads.get(key, 0) + (1 - beta2) * abs(now - means[key])
                    share[name][place] = means[key] * spreads[key]
            for k in range(init_r):
                row, column = share["A"][k], share["B"][:, k]
                matters[number, k] = share["E"][k, 0] + sum(row) / len(row) + sum(column) / len(column)
        if t > len(steps) - tfinal:
            kept.append(kept[-1])
            continue
        count = len(layers)
        budget = adalora_budget(t, tinit, tfinal, len(steps), count * init_r, count * target_r)
        best = sorted(matters.flatten(), reverse=True)[:budget]
        kept.append(matters >= best[-1])
    return kept


def relu(v):
    return max(v, 0.0)


def gelu(v):
    return v * (1 + math.erf(v / math.sqrt(2))) / 2


def swish(v):
    return v / (1 + math.exp(-v))


def layer_norm(h, weight, bias, eps=1e-5):
    mean = sum(h) / len(h)
    variance = sum((number - mean) ** 2 for number in h) / len(h)
    return (h - mean) / math.sqrt(variance + eps) * weight + bias


def bottleneck(h, down, b1, up, b2, function, scaling, norm=None):
    """scaling (up(f(down(h) + b1)) + b2), for the normed h where there is a norm (weight, bias)."""
    if norm is not None:
        h = layer_norm(h, *norm)
    inner = np.array([function(number) for number in base(h, down, b1)])
    return scaling * base(inner, up, b2)


def network(rows, maps, function):
    """W_n f(... f(W_1 row + b_1) ...) + b_n for every row; maps are the (W, b)."""
    out = []
    for row in rows:
        for number, (W, b) in enumerate(maps):
            row = base(row, W, b)
            if number + 1 < len(maps):
                row = np.array([function(v) for v in row])
        out.append(row)
    return np.stack(out)


def merged(function, num_inputs):
    """(W', b') of a linear function of one input: what it says to the unit vectors, and to zero."""
    b = function(np.zeros(num_inputs))
    return np.stack([function(unit) - b for unit in np.eye(num_inputs)], 1), b


def convolution(image, kernel, bias, stride, padding, dilation):
    """image (rows, channels, height, width) under kernel (out, channels, kernel height, kernel width), zeros around it."""
    rows, channels, *size = image.shape
    padded = np.zeros((rows, channels, size[0] + 2 * padding[0], size[1] + 2 * padding[1]))
    padded[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]] = image
    height, width = (
        (padded.shape[2 + side] - dilation[side] * (kernel.shape[2 + side] - 1) - 1) // stride[side] + 1
        for side in (0, 1)
    )
    out = np.zeros((rows, len(kernel), height, width))
    for n, o, i, j in np.ndindex(*out.shape):
        for c, k, m in np.ndindex(*kernel.shape[1:]):
            pixel = padded[n, c, i * stride[0] + k * dilation[0], j * stride[1] + m * dilation[1]]
            out[n, o, i, j] += kernel[o, c, k, m] * pixel
        out[n, o, i, j] += 0 if bias is None else bias[o]
    return out


STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
"""The central difference of sixth order: steps to either side, and their weights."""


def gradient(function, values, step):
    """The gradient of a number by central differences, for every number of the array `values`."""
    out = np.zeros_like(values)
    for place in np.ndindex(*values.shape):
        for steps, weight in STENCIL:
            ahead, behind = values.copy(), values.copy()
            ahead[place] += steps * step
            behind[place] -= steps * step
            out[place] += weight / step * (function(ahead) - function(behind))
    return out
