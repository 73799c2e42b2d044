"""What pruners compute with tensors, over plain lists and in loops: slow, and easy to believe."""

import math


def top(values, members, count):
    return sorted(members, key=lambda i: (-values[i], i))[:count]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def most_diverse(features, members, count, picked=()):
    def distance(i, j):
        return 1 - cosine(features[i], features[j])

    picked = list(picked)
    if not picked:
        picked = [max(members, key=lambda i: min(distance(i, j) for j in members if j != i))]
    while len(picked) < count:
        others = [i for i in members if i not in picked]
        picked.append(max(others, key=lambda i: min(distance(i, j) for j in picked)))
    return picked


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
